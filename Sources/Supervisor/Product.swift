import CBuildStamp
package import QMPProtocol

/// What this program says it is. The numbers stand in `CBuildStamp`.
package enum Product {
    package static let name = "sidestep"
    package static let version = unsafe String(cString: build_stamp_version())
    /// The QEMU version whose QMP and streams this speaks.
    package static let qmpVersion = QMPVersion(major: 10, minor: 0, micro: 0, package: "sidestep \(version)")
}

/// Forms of a guest's state, as it goes from one process of this program to the next.
///
/// | version | what is in it |
/// |---|---|
/// | 1 | components, backends, clock, monitor |
/// | 2 | and the guest's history, see ``GuestHistory`` |
///
/// A new program reads and writes the older forms, so that a guest can go to it and back; the one that both sides know best
/// is agreed on before anything else. Components have versions of their own in their sections.
enum UpgradeStateVersion {
    /// What this build reads and writes.
    static let known: ClosedRange<Int> = {
        let first = Int(build_stamp_state_first())
        return first...max(first, Int(build_stamp_state_last()))
    }()
    static let withHistory = 2
    /// Components' sections come ahead of the rest of the state, in parts.
    static let withParts = 3
    /// Sections of components that can be coded while the guest runs come before the pause, with the monitor's clients.
    static let withAhead = 4

    /// The newest that both know.
    static func common(with peer: ClosedRange<Int>, of program: String) throws(Refusal) -> Int {
        guard known.overlaps(peer) else {
            throw Refusal(
                "\(Product.name) \(Product.version) keeps a guest's state in version \(text(known)), \(program) in version "
                    + "\(text(peer)): use a program between the two, which knows both")
        }
        return min(known.upperBound, peer.upperBound)
    }

    private static func text(_ range: ClosedRange<Int>) -> String {
        range.count == 1 ? "\(range.lowerBound)" : "\(range.lowerBound) to \(range.upperBound)"
    }
}

/// Where a guest has been.
struct GuestHistory: Codable, Hashable {
    /// The program that started it, or got it from elsewhere; nil when a program came between that did not keep this.
    var startedBy: String? = "\(Product.name) \(Product.version)"
    /// How often it has changed process since.
    var moves = 0
}
