package import QMPProtocol

/// What this program says it is.
package enum Product {
    package static let name = "sidestep"
    package static let version = "0.1.0"
    /// The QEMU version whose QMP and streams this speaks.
    package static let qmpVersion = QMPVersion(major: 10, minor: 0, micro: 0, package: "sidestep \(version)")
}
