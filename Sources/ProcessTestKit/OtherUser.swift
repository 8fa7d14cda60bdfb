import Glibc

/// An ordinary user without any capability, under whose name root runs a program. Where the tests run as an ordinary user
/// themselves, that one is it.
package struct OtherUser: Sendable {
    package let identifier: UInt32

    /// Numbers that belong to nobody on this machine.
    package static let first = OtherUser(identifier: 64_123)
    package static let second = OtherUser(identifier: 64_124)

    /// Root can be anybody.
    package static let requirement = Requirement(
        geteuid() != 0 || HostTools.path(of: "setpriv") != nil, "no setpriv: Debian package util-linux")
    package static let isRoot = Requirement(geteuid() == 0, "two users are needed, which only root can be")

    /// A command under this user's name.
    package func command(_ program: String, _ arguments: [String]) -> (program: String, arguments: [String]) {
        guard geteuid() == 0 else { return (program, arguments) }
        return (
            "setpriv",
            [
                "--reuid=\(identifier)", "--regid=\(identifier)", "--clear-groups", "--inh-caps=-all",
                "--bounding-set=-all", "--no-new-privs", program,
            ] + arguments
        )
    }

    /// Gives this user a file or a directory with all that is in it.
    package func own(_ path: String) throws {
        if geteuid() == 0 { try HostTools.need("chown", ["-R", "\(identifier):\(identifier)", path]) }
    }
}
