# Installs what tests need from a Debian system. Source it, then
#   install_system_packages LIST
# with LIST a file of package names; what stands after # is a comment.
# A package that cannot be installed is a warning: the tests that need it skip themselves
# and say so.

install_system_packages() {
  local packages failed=() package
  mapfile -t packages < <(sed 's/#.*//' "$1" | grep -o '[^[:space:]]\+' || true)
  [ ${#packages[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "warning: --system-packages: found no root or no apt-get; not installed: ${packages[*]}" >&2
    return 0
  fi
  apt-get -qq update || echo "warning: apt-get update failed; the lists of before are used" >&2
  _apt_install "${packages[@]}" && return 0
  # One name that the system does not know keeps all others from being installed.
  for package in "${packages[@]}"; do
    _apt_install "$package" || failed+=("$package")
  done
  if [ ${#failed[@]} -gt 0 ]; then
    echo "warning: --system-packages: apt-get could not install: ${failed[*]}" >&2
  fi
}

_apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"
}
