/// A QEMU command line as its options, in order.
package struct CommandLine: Hashable, Sendable {
    /// One option and its argument.
    package struct Option: Hashable, Sendable {
        /// Without the dash, in QEMU's long spelling: `machine`, not `M`.
        package var name: String
        package var argument: String?

        package init(_ name: String, _ argument: String? = nil) {
            self.name = name
            self.argument = argument
        }

        /// As two words of a command line, or one.
        package var words: [String] { ["-" + name] + (argument.map { [$0] } ?? []) }
    }

    package var options: [Option]

    /// Reads the words that follow the program's name.
    /// - Throws: ``UpgradeFailure`` that names the first word that is not understood.
    package init(words: [String]) throws(UpgradeFailure) {
        var options: [Option] = []
        var index = 0
        while index < words.count {
            let word = words[index]
            index += 1
            guard word.hasPrefix("-"), word.count > 1 else {
                // A word alone is a disk, as with -hda.
                throw UpgradeFailure(
                    .refused, "the command line has '\(word)' by itself: start the guest with -drive file=\(word)")
            }
            var name = String(word.dropFirst(word.hasPrefix("--") ? 2 : 1))
            name = Self.longNames[name] ?? name
            if Self.flags.contains(name) {
                options.append(Option(name))
            } else if Self.withArgument.contains(name) {
                guard index < words.count else {
                    throw UpgradeFailure(.refused, "the command line ends after -\(name), which needs an argument")
                }
                options.append(Option(name, words[index]))
                index += 1
            } else {
                throw UpgradeFailure(
                    .refused,
                    "-\(name) on the guest's command line is not understood; without it the guest can be upgraded")
            }
        }
        self.options = options
    }

    package init(options: [Option]) { self.options = options }

    package var words: [String] { options.flatMap(\.words) }

    /// The arguments of every option of that name.
    package func arguments(_ name: String) -> [String] {
        options.filter { $0.name == name }.compactMap(\.argument)
    }

    /// Spellings of the same option.
    private static let longNames = ["M": "machine", "g": "geometry", "hda": "hda", "no-kvm": "no-kvm", "h": "help"]

    /// Options without an argument. Source: `-help` of QEMU 7.2 and 10.0.
    static let flags: Set<String> = [
        "S", "nographic", "nodefaults", "no-user-config", "nouserconfig", "no-reboot", "no-shutdown", "enable-kvm",
        "daemonize", "snapshot", "usb", "full-screen", "no-acpi", "no-hpet", "no-fd-bootchk", "win2k-hack",
        "mem-prealloc",
        "only-migratable", "preconfig", "s", "singlestep", "one-insn-per-tb", "semihosting", "enable-sync-profile",
        "perfmap",
        "jitdump", "xen-attach", "xen-domid-restrict", "async-teardown", "portrait", "old-param", "no-quit",
    ]

    /// Options with one. Source: as above.
    static let withArgument: Set<String> = [
        "D", "L", "accel", "acpitable", "action", "add-fd", "append", "audio", "audiodev", "bios", "blockdev", "boot",
        "cdrom", "chardev", "chroot", "compat", "cpu", "d", "debugcon", "device", "dfilter", "display", "drive", "dtb",
        "dump-vmstate", "echr", "fda", "fdb", "fsdev", "fw_cfg", "gdb", "geometry", "global", "hda", "hdb", "hdc",
        "hdd",
        "icount", "incoming", "initrd", "iscsi", "k", "kernel", "loadvm", "m", "machine", "mem-path", "mon", "monitor",
        "msg", "mtdblock", "name", "net", "netdev", "nic", "numa", "object", "option-rom", "overcommit", "parallel",
        "pflash", "pidfile", "plugin", "prom-env", "qmp", "qmp-pretty", "readconfig", "rotate", "rtc", "run-with",
        "runas",
        "sandbox", "sd", "seed", "semihosting-config", "serial", "set", "shim", "smbios", "smp", "spice", "tb-size",
        "tpmdev", "trace", "usbdevice", "uuid", "vga", "virtfs", "vnc", "watchdog", "watchdog-action", "writeconfig",
        "xen-domid",
    ]
}
