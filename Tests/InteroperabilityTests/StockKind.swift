import ProcessTestKit

/// Which stock release, how many harts, which virtio: one kind of machine on both sides.
struct StockKind: Sendable, CustomStringConvertible {
    var release = "7.2"
    var harts = 1
    var isLegacy = false
    var hasEntropy = true
    /// Of the disk; nil leaves it to the release.
    var queueSize: Int?

    static let releases = ["7.2", "10.0", "11.1"]

    var program: String {
        switch release {
        case "7.2": StockQEMUBuild.installed
        case "10.0": StockQEMUBuild.ten
        default: StockQEMUBuild.eleven
        }
    }
    var layout: String { "qemu-\(release)" }
    var description: String { "\(release), \(harts) harts, \(isLegacy ? "legacy" : "modern")" }
    /// What is missing here for it.
    var requirement: Requirement {
        switch release {
        case "7.2": .qemu
        case "10.0": .qemu10
        default: .qemu11
        }
    }
    var isHere: Bool { requirement.isMet }
    /// Releases that read and write files themselves.
    var hasFileTransport: Bool { release != "7.2" }
}
