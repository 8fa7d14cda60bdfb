/// An error as it crosses QMP: one of QEMU's classes and a sentence.
package struct QMPError: Error, Hashable, Sendable, CustomStringConvertible {
    /// Classes as QEMU spells them.
    package enum Class: String, Hashable, Sendable, CaseIterable {
        case generic = "GenericError"
        case commandNotFound = "CommandNotFound"
        case deviceNotActive = "DeviceNotActive"
        case deviceNotFound = "DeviceNotFound"
        case kvmMissingCapability = "KVMMissingCap"
    }

    package var errorClass: Class
    package var description: String

    package init(_ description: String, class errorClass: Class = .generic) {
        self.errorClass = errorClass
        self.description = description
    }

    package static func commandNotFound(_ name: String) -> QMPError {
        QMPError("The command \(name) has not been found", class: .commandNotFound)
    }
    package static func missing(parameter name: String) -> QMPError { QMPError("Parameter '\(name)' is missing") }
    package static func unexpected(parameter name: String) -> QMPError { QMPError("Parameter '\(name)' is unexpected") }
    package static func invalidType(parameter name: String, expected: String) -> QMPError {
        QMPError("Invalid parameter type for '\(name)', expected: \(expected)")
    }
    package static func invalidValue(parameter name: String, expected: String) -> QMPError {
        QMPError("Parameter '\(name)' expects \(expected)")
    }
    /// A value that is not in an enumeration.
    package static func notAccepted(parameter name: String, value: String) -> QMPError {
        QMPError("Parameter '\(name)' does not accept value '\(value)'")
    }
}
