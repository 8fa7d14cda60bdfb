import Glibc
package import LinuxCalls

/// A user's service manager (systemd) of a test's own, in a mount namespace where the machine looks as if it had been started by one,
/// and in control groups of its own: two managers in one would each take the other's unit of the same name for theirs.
package enum UserServiceManager {
    /// Runs a shell script under a manager, and ends the manager.
    ///
    /// The script finds `$directory` (for what it leaves behind), `$unit` (a name for its unit) and `await COMMAND...`, which tries
    /// for half a minute. `systemctl --user` and `systemd-run --user` reach the manager.
    /// - Parameter arguments: The script's `$1` and so on.
    package static func run(
        _ script: String, in directory: String, _ arguments: [String] = [], seconds: Double = 200
    ) throws -> (end: ProcessEnd, output: String, errors: String) {
        // In a mount namespace of its own, which ends with the test.
        try HostTools.run(
            "unshare",
            ["--mount", "--fork", "--kill-child", "sh", "-c", begin + script + "\nend\n", "sh", directory] + arguments,
            seconds: seconds)
    }

    /// What a script said of its unit in lines that begin with STATE: words with `=`, as values by name.
    package static func states(in output: String) -> [[String: String]] {
        output.split(separator: "\n").filter { $0.hasPrefix("STATE ") }.map { line in
            let pairs = line.split(separator: " ").map { $0.split(separator: "=", maxSplits: 1).map(String.init) }
            return Dictionary(
                pairs.filter { $0.count == 2 }.map { ($0[0], $0[1]) }, uniquingKeysWith: { _, last in last })
        }
    }

    package static let requirement = Requirement(
        geteuid() == 0 && HostTools.path(of: "systemd-run") != nil
            && (Checkout.exists("/lib/systemd/systemd") || Checkout.exists("/usr/lib/systemd/systemd"))
            && (try? TemporaryDirectory()).map { directory in
                (try? run("systemd-run --user --wait true || exit 69", in: directory.path).end)
                    == .exited(status: 0)
            } == true,
        "a user's service manager of our own needs systemd-run, systemd and root")

    private static let begin = #"""
        directory=$1; shift; unit=sidestep-test-$$
        for place in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
            [ -e $place/cgroup.procs ] && mkdir $place/$unit && echo $$ >$place/$unit/cgroup.procs
        done 2>/dev/null
        mount -t tmpfs tmpfs /run || exit 69
        mkdir -p /run/systemd/system /run/user
        chmod 700 /run/user
        export XDG_RUNTIME_DIR=/run/user
        for program in /lib/systemd/systemd /usr/lib/systemd/systemd; do [ -x $program ] && break; done
        $program --user >"$directory/systemd.log" 2>&1 &
        manager=$!
        await() { for try in $(seq 300); do "$@" && return; sleep 0.1; done; return 1; }
        await [ -S /run/user/systemd/private ] || { echo NO-MANAGER; cat "$directory/systemd.log"; exit 69; }
        end() {
            kill $manager
            wait $manager
            # The shell is still in them; whoever runs next removes what is empty.
            for place in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do
                place=${place%/cgroup.procs}
                [ -d $place/$unit ] || continue
                echo $$ >$place/cgroup.procs
                find $place/$unit -depth -type d -exec rmdir {} \;
            done 2>/dev/null
            :
        }

        """#
}
