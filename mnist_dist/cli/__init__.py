"""What programs share: flags, exit codes, standard streams, forms of output."""
