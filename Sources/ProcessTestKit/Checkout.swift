import Glibc

/// Where things are: the checkout this was built from, the tool under test, and the guests that scripts of the project
/// build or fetch. Nothing is fetched here: `./test` does that, and what is missing makes tests say that they are skipped.
package enum Checkout {
    /// The directory of Package.swift.
    package static let root: String = {
        let parts = #filePath.split(separator: "/")
        return "/" + parts.dropLast(3).joined(separator: "/")
    }()

    /// What scripts made: `SIDESTEP_CACHE`, or `.cache` of the checkout.
    package static let cache: String = Environment.all["SIDESTEP_CACHE"] ?? "\(root)/.cache"

    /// The tool under test: `SIDESTEP`, or the release build.
    package static let tool: String = Environment.all["SIDESTEP"] ?? "\(root)/.build/release/sidestep"

    package static func exists(_ path: String) -> Bool { HostTools.allows(R_OK, path) }
}

/// What a test needs beyond the build, and what to do where it is missing: for `.enabled(if:)`.
package struct Requirement: Sendable, Hashable, CustomStringConvertible {
    package let isMet: Bool
    /// What is missing, as one sentence.
    package let description: String

    package init(_ isMet: Bool, _ missing: String) {
        self.isMet = isMet
        description = missing
    }

    package static let tool = Requirement(
        HostTools.allows(X_OK, Checkout.tool),
        "no tool at \(Checkout.tool): swift build -c release --static-swift-stdlib --product sidestep")
    package static let heartbeat = Requirement(
        Checkout.exists(Heartbeat.elf), "no heartbeat guest: Guests/heartbeat/build")
    package static let debian = Requirement(
        Checkout.exists(DebianGuest.image) && Checkout.exists(DebianGuest.initramfsWithDisk),
        "no Debian guest: Guests/debian/fetch and Guests/debian/make-initramfs, which need a Debian mirror")
    package static let firmware = Requirement(
        Checkout.exists("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
        "no OpenSBI: Debian package opensbi")
    package static let qemu = Requirement(
        HostTools.path(of: "qemu-system-riscv64") != nil, "no qemu-system-riscv64: Debian package qemu-system-misc")
    package static let qemu10 = Requirement(
        Checkout.exists(StockQEMUBuild.ten), "no QEMU 10.0 beside the installed one: Guests/qemu/fetch")

    package static let stockPC = Requirement(
        StockQEMUBuild.releases.allSatisfy { Checkout.exists(StockQEMUBuild.pc($0)) },
        "no QEMU 7.2 and 10.0 for x86-64: Guests/qemu/fetch --version 7.2 and Guests/qemu/fetch")
    package static let debianPC = Requirement(
        Checkout.exists(DebianGuest.pcImage) && Checkout.exists(DebianGuest.pcInitramfsWithDisk),
        "no Debian guest for amd64: Guests/debian/fetch --architecture amd64 and make-initramfs, which need a Debian mirror"
    )
    package static let qemu11 = Requirement(
        Checkout.exists(StockQEMUBuild.eleven),
        "no QEMU 11.1 beside the installed one: Guests/qemu/fetch --version 11.1")

    package static func program(_ name: String, package: String) -> Requirement {
        Requirement(HostTools.path(of: name) != nil, "no \(name): Debian package \(package)")
    }

    /// Root's own network namespaces and taps.
    package static let taps = Requirement(
        geteuid() == 0 && HostTools.allows(R_OK | W_OK, "/dev/net/tun")
            && (try? HostTools.run("unshare", ["--net", "true"]).end == .exited(status: 0)) == true,
        "taps and network namespaces need root and /dev/net/tun")
}

/// The bare-metal guest; see Guests/heartbeat/README.md.
package enum Heartbeat {
    package static let elf = "\(Checkout.cache)/heartbeat/heartbeat.elf"
    package static let flat = "\(Checkout.cache)/heartbeat/heartbeat.bin"
}

/// Debian's kernel with the test initramfs; see Guests/debian/root/init.
package enum DebianGuest {
    package static let image = "\(Checkout.cache)/debian-riscv64/Image"
    package static let initramfs = "\(Checkout.cache)/debian-riscv64/initramfs.cpio.gz"
    package static let initramfsWithDisk = "\(Checkout.cache)/debian-riscv64/initramfs-disk.cpio.gz"
    package static let pcImage = "\(Checkout.cache)/debian-amd64/Image"
    package static let pcInitramfsWithDisk = "\(Checkout.cache)/debian-amd64/initramfs-disk.cpio.gz"
    /// For every boot: the console, and no self-tests of ciphers nobody uses here, which take longer than the rest.
    package static let words = "console=ttyS0 cryptomgr.notests"
}

/// Stock QEMU's programs.
package enum StockQEMUBuild {
    package static let installed = "qemu-system-riscv64"
    package static let ten = "\(Checkout.cache)/qemu-10.0/qemu-system-riscv64"
    package static let releases = ["7.2", "10.0"]
    /// For x86-64, of a release.
    package static func pc(_ release: String) -> String { "\(Checkout.cache)/qemu-\(release)/qemu-system-x86_64" }
    package static let eleven = "\(Checkout.cache)/qemu-11.1/qemu-system-riscv64"
}
