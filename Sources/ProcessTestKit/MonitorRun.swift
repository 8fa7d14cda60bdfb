package import LinuxCalls

/// Guests under the tool: `sidestep run` with a run directory of the test's own, so that tests meet nobody's guests.
package final class MonitorRun: Sendable {
    package let directory: TemporaryDirectory

    package init() throws { directory = try TemporaryDirectory() }

    package var environment: [String: String] { ["XDG_RUNTIME_DIR": directory.path] }

    /// Starts `sidestep run ARGUMENTS...` with its console on standard input and output.
    package func start(
        _ arguments: [String], name: String = "guest", in network: PrivateNetwork? = nil, limitSeconds: Double = 300
    ) throws -> RunningProgram {
        let all = ["run", "--name", name, "--console", "stdio"] + arguments
        if let network {
            return try network.start(
                Checkout.tool, all, name: name, environment: environment, limitSeconds: limitSeconds)
        }
        return try RunningProgram(Checkout.tool, all, name: name, environment: environment, limitSeconds: limitSeconds)
    }

    /// Runs another subcommand to its end.
    package func command(_ arguments: [String], seconds: Double = 60) throws -> (
        end: ProcessEnd, output: String, errors: String
    ) {
        try HostTools.run(Checkout.tool, arguments, environment: environment, seconds: seconds)
    }

    /// The heartbeat guest.
    package func heartbeat(_ more: [String] = [], name: String = "guest", limitSeconds: Double = 300) throws
        -> RunningProgram
    {
        try start(["--firmware", Heartbeat.elf, "--memory", "64M"] + more, name: name, limitSeconds: limitSeconds)
    }

    /// Debian's kernel.
    /// - Parameters:
    ///   - words: For the kernel command line beside ``DebianGuest/words``; see Guests/debian/root/init.
    ///   - withDisk: The initramfs that has the modules of ext4.
    package func debian(
        words: String, withDisk: Bool = false, _ more: [String] = [], name: String = "guest",
        in network: PrivateNetwork? = nil, limitSeconds: Double = 300
    ) throws -> RunningProgram {
        try start(
            [
                "--kernel", DebianGuest.image, "--initrd",
                withDisk ? DebianGuest.initramfsWithDisk : DebianGuest.initramfs, "--append",
                "\(DebianGuest.words) \(words)", "--memory", "256M",
            ] + more, name: name, in: network, limitSeconds: limitSeconds)
    }
}

/// A disk image with an ext4 file system that holds a random file, for the guest's `disk-test`.
package struct TestDisk: Sendable {
    package let path: String

    /// - Parameter fileKiB: Size of the file `from-host`.
    package init(
        in directory: TemporaryDirectory, named name: String = "disk.img", fileKiB: Int = 512, diskMiB: Int = 32
    )
        throws
    {
        path = directory.file(name)
        let files = directory.file("\(name).files")
        try HostTools.need(
            "sh",
            [
                "-ec",
                """
                mkdir \(files); cd \(files)
                dd if=/dev/urandom of=from-host bs=1k count=\(fileKiB) 2>/dev/null
                md5sum from-host >from-host.md5
                truncate -s \(diskMiB)M \(path)
                mke2fs -q -F -t ext4 -d . \(path)
                rm -r \(files)
                """,
            ])
    }

    /// The file system is clean: nothing to mend, no journal to replay.
    package func isClean() throws -> Bool {
        try HostTools.run("e2fsck", ["-f", "-n", path]).end == .exited(status: 0)
    }

    /// The guest's file `from-guest` is what its hash in `from-guest.md5` says, read by the host.
    package func holdsWhatTheGuestWrote() throws -> Bool {
        let script = """
            debugfs -R 'dump from-guest.md5 \(path).md5' \(path) 2>/dev/null
            debugfs -R 'dump from-guest \(path).from-guest' \(path) 2>/dev/null
            test -s \(path).from-guest
            test "$(md5sum <\(path).from-guest | cut -c1-32)" = "$(cut -c1-32 \(path).md5)"
            """
        return try HostTools.run("sh", ["-ec", script]).end == .exited(status: 0)
    }
}
