import CLinuxShims
import Glibc

/// Whether the kernel, or a sandbox before it, lets us use userfaultfd(2) for faults in user mode.
package enum UserFaultProbe {
    /// `UFFD_USER_MODE_ONLY`.
    private static let userModeOnly: CInt = 1

    package static var isAllowed: Bool {
        let descriptor = shim_userfaultfd(O_CLOEXEC | O_NONBLOCK | userModeOnly)
        guard descriptor >= 0 else { return false }
        _ = OwnedDescriptor(adopting: descriptor)
        return true
    }
}
