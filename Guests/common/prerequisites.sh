# What the scripts of this project need from Debian, sourced by ./test and ./demo.
#
#   install_packages COMMAND=PACKAGE...   installs the packages whose command is not there, when it may (root, and apt works);
#                                         otherwise says what is missing and goes on: what needs it will be skipped
#
# A name that starts with / is a file instead of a command.
install_packages() {
    local entry missing=()
    for entry in "$@"; do
        local wanted=${entry%%=*} package=${entry##*=}
        case "$wanted" in
        /*) [ -e "$wanted" ] || missing+=("$package") ;;
        *) PATH="$PATH:/usr/sbin:/sbin" command -v "$wanted" >/dev/null || missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Missing Debian packages, which need root and apt to install: ${missing[*]}"
        return 0
    fi
    echo "Installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local options=(-qq -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120)
    timeout 300 apt-get "${options[@]}" update >/dev/null 2>&1 || true
    timeout 900 apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 && return 0
    # One that cannot be had must not keep the others away.
    for entry in "${missing[@]}"; do
        timeout 600 apt-get "${options[@]}" install -y --no-install-recommends "$entry" >/dev/null 2>&1 \
            || echo "Debian package $entry cannot be installed here"
    done
}
