# Debian packages without installing them: a private apt set-up in a directory of our own, sourced by the fetch scripts.
# The mirror (and any proxy or credentials apt is configured with) is this machine's; no host is named here.
#
#   private_apt DIRECTORY ARCHITECTURE SUITE...   sets up DIRECTORY and brings the package lists up to date
#   package_apt_from_nothing DIRECTORY            from now on nothing counts as installed
#   package_apt get|cache ARGUMENT...             apt-get or apt-cache within that set-up
#   unavailable MESSAGE                           says why something cannot be had and exits with status 69

# Status of a fetch script when what it is to fetch cannot be had here (EX_UNAVAILABLE of sysexits.h); any other
# failure is a fault.
unavailable() {
    echo "$(basename "$0"): $*" >&2
    exit 69
}

# The sources apt knows, one per line: "address suites...|options". Both formats of sources.list(5) are read.
_apt_sources() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | awk '
        $1 == "deb" {
            options = ""; i = 2
            if ($2 ~ /^\[/) { while (i <= NF) { options = options " " $i; if ($i ~ /\]$/) { i++; break } i++ } }
            gsub(/[][]/, "", options)
            print $i " " $(i + 1) "|" options
        }' || true
    cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '
        function flush(  n, list, i) {
            if (types ~ /(^| )deb( |$)/ && enabled != "no") {
                n = split(addresses, list, " ")
                for (i = 1; i <= n; i++) print list[i] " " suites "|" (trusted == "yes" ? "trusted=yes" : "")
            }
            types = addresses = suites = trusted = enabled = ""
        }
        /^[ \t]*$/ { flush(); next }
        /^#/ { next }
        { key = tolower($1); value = $0; sub(/^[^:]*:[ \t]*/, "", value) }
        key == "types:" { types = value }
        key == "uris:" { addresses = value }
        key == "suites:" { suites = value }
        key == "trusted:" { trusted = value }
        key == "enabled:" { enabled = value }
        END { flush() }' || true
}

# The Debian archive of this machine: the first source that carries the running release itself.
_debian_source() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    [ -n "$codename" ] || codename=stable
    _apt_sources | awk -v codename="$codename" -F'|' '{
        n = split($1, word, " ")
        for (i = 2; i <= n; i++) if (word[i] == codename || word[i] == codename "-updates") { print; exit }
    }'
}

private_apt() {
    local directory=$1 architecture=$2
    shift 2
    command -v apt-get >/dev/null || unavailable "this needs apt-get, and there is none"
    local source address options="arch=$architecture" key=/usr/share/keyrings/debian-archive-keyring.gpg
    source=$(_debian_source)
    [ -n "$source" ] || unavailable "no Debian mirror in this machine's apt sources"
    address=${source%% *}
    case "$source" in *trusted=yes*) options="$options trusted=yes" ;; esac
    if [ -f "$key" ]; then options="$options signed-by=$key"; fi
    mkdir -p "$directory"/{lists/partial,cache/archives/partial,packages}
    local suite
    for suite in "$@"; do echo "deb [$options] $address $suite main"; done > "$directory/sources.list"
    _package_apt_options=(
        -o Dir::State::Lists="$directory/lists" -o Dir::Cache="$directory/cache"
        -o Dir::Etc::SourceList="$directory/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o APT::Architecture="$architecture" -o APT::Architectures::="$architecture" -o APT::Sandbox::User=root
        -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 -o Debug::NoLocking=1 -qq)
    if [ "$architecture" != "$(dpkg --print-architecture)" ]; then package_apt_from_nothing "$directory"; fi
    # apt-get answers 0 with a warning when a mirror cannot be reached; the lists tell. A mirror that is busy for a moment gets
    # two more chances.
    local attempt
    for attempt in 1 2 3; do
        timeout 300 apt-get "${_package_apt_options[@]}" update >"$directory/update.log" 2>&1 || true
        ! ls "$directory"/lists/*_Packages* >/dev/null 2>&1 || break
        [ "$attempt" = 3 ] || sleep $((attempt * 5))
    done
    ls "$directory"/lists/*_Packages* >/dev/null 2>&1 \
        || unavailable "the package lists cannot be had: $(tail -n 1 "$directory/update.log")"
}

package_apt_from_nothing() {
    : > "$1/status"
    _package_apt_options+=(-o Dir::State::status="$1/status")
}

package_apt() {
    local tool=$1
    shift
    timeout 900 "apt-$tool" "${_package_apt_options[@]}" "$@"
}
