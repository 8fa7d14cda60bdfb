import CLinuxShims
import Glibc

/// Whether the kernel, or a sandbox before it, lets us use vmsplice(2).
package enum PipeProbe {
    /// Puts the first page of a mapping into a pipe by reference.
    package static func splices(_ page: OwnedMapping, into pipe: OwnedDescriptor) -> Bool {
        var piece = unsafe iovec(iov_base: page.base, iov_len: hostPageSize)
        return unsafe shim_vmsplice(pipe.rawValue, &piece, 1, SHIM_SPLICE_F_NONBLOCK) > 0
    }
}
