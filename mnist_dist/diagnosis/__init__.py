"""What a set-up can do, found out before a long run: host, disk, devices, peers."""
