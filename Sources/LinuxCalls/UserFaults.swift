import CLinuxShims
import Glibc

/// Page faults of this process, answered by this process: a thread that touches a missing page of a watched area sleeps
/// until somebody puts the page there. Source: userfaultfd(2), ioctl_userfaultfd(2).
///
/// Only faults in user mode are caught (`UFFD_USER_MODE_ONLY`), which every user may do whatever
/// `vm.unprivileged_userfaultfd` says. A system call that is given a missing page fails with `EFAULT` instead.
package final class UserFaults: Sendable {
    package let descriptor: OwnedDescriptor

    /// The corresponding system call is `userfaultfd`, and `UFFDIO_API`.
    /// - Throws: `EPERM` or `ENOSYS` where a sandbox or a kernel does not have it.
    package init() throws(SystemCallError) {
        let flags = O_CLOEXEC | O_NONBLOCK
        var opened: CInt
        do throws(SystemCallError) {
            opened = try retrying("userfaultfd") { shim_userfaultfd(flags | CInt(UFFD_USER_MODE_ONLY)) }
        } catch {
            // Linux before 5.11 does not know the flag.
            guard error.errno == .invalidArgument else { throw error }
            opened = try retrying("userfaultfd") { shim_userfaultfd(flags) }
        }
        descriptor = OwnedDescriptor(adopting: opened)
        var api = uffdio_api(api: UInt64(UserFaults.apiVersion), features: 0, ioctls: 0)
        _ = try retrying("ioctl(UFFDIO_API)") {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_uffdio_api(), &api)
        }
    }

    /// `UFFD_API`.
    private static let apiVersion = 0xAA
    /// `UFFDIO_REGISTER_MODE_MISSING`.
    private static let missing: UInt64 = 1
    /// `UFFD_EVENT_PAGEFAULT`.
    private static let pageFault: UInt8 = 0x12

    /// Watches an area for missing pages: private anonymous memory, or a shared mapping of a memory file.
    package func watch(_ area: UnsafeMutableRawBufferPointer) throws(SystemCallError) {
        var request = unsafe uffdio_register(range: Self.range(area), mode: Self.missing, ioctls: 0)
        _ = try retrying("ioctl(UFFDIO_REGISTER)") {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_uffdio_register(), &request)
        }
    }

    /// Watches no longer: whoever waits for a page goes on, and what is missing reads as zero from now on.
    package func unwatch(_ area: UnsafeMutableRawBufferPointer) throws(SystemCallError) {
        var request = unsafe Self.range(area)
        _ = try retrying("ioctl(UFFDIO_UNREGISTER)") {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_uffdio_unregister(), &request)
        }
    }

    /// Puts contents where nothing is, whole pages at once, and wakes those who wait for them.
    /// - Returns: Bytes placed, in whole pages. Fewer than there are when the next page is there already, which is left
    ///   as it is.
    package func place(_ bytes: UnsafeRawBufferPointer, at address: UnsafeMutableRawPointer) throws(SystemCallError)
        -> Int
    {
        var done = 0
        while done < bytes.count {
            var request = unsafe uffdio_copy(
                dst: UInt64(UInt(bitPattern: address + done)),
                src: UInt64(UInt(bitPattern: bytes.baseAddress! + done)), len: UInt64(bytes.count - done), mode: 0,
                copy: 0)
            do throws(SystemCallError) {
                _ = try retrying("ioctl(UFFDIO_COPY)") {
                    unsafe shim_ioctl_pointer(descriptor.rawValue, shim_uffdio_copy(), &request)
                }
                return bytes.count
            } catch {
                if request.copy > 0 { done += Int(request.copy) }
                // EAGAIN: the mappings of the process are being changed, or only a part was done.
                if error.errno == .wouldBlock { continue }
                if error.errno == .fileExists { return done }
                throw error
            }
        }
        return done
    }

    /// Puts a page of zeroes where nothing is, and wakes those who wait for it.
    /// - Returns: False when the page is there already.
    @discardableResult package func placeZeroes(_ area: UnsafeMutableRawBufferPointer) throws(SystemCallError) -> Bool {
        while true {
            var request = unsafe uffdio_zeropage(range: Self.range(area), mode: 0, zeropage: 0)
            do throws(SystemCallError) {
                _ = try retrying("ioctl(UFFDIO_ZEROPAGE)") {
                    unsafe shim_ioctl_pointer(descriptor.rawValue, shim_uffdio_zeropage(), &request)
                }
                return true
            } catch {
                if error.errno == .wouldBlock { continue }
                if error.errno == .fileExists { return false }
                throw error
            }
        }
    }

    /// Wakes those who wait for a page that is there by now.
    package func wake(_ area: UnsafeMutableRawBufferPointer) throws(SystemCallError) {
        var request = unsafe Self.range(area)
        _ = try retrying("ioctl(UFFDIO_WAKE)") {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_uffdio_wake(), &request)
        }
    }

    /// The address of the next fault; nil when there is none now.
    package func next() throws(SystemCallError) -> UInt? {
        // struct uffd_msg: u8 event, 7 bytes, u64 flags, u64 address, 8 bytes.
        var message = [UInt64](repeating: 0, count: 4)
        while true {
            do throws(SystemCallError) {
                let count = try retrying("read(userfaultfd)") {
                    unsafe read(descriptor.rawValue, &message, 32)
                }
                guard count == 32 else { return nil }
            } catch {
                if error.errno == .wouldBlock { return nil }
                throw error
            }
            if UInt8(truncatingIfNeeded: message[0]) == Self.pageFault { return UInt(message[2]) }
        }
    }

    private static func range(_ area: UnsafeMutableRawBufferPointer) -> uffdio_range {
        uffdio_range(start: UInt64(UInt(bitPattern: area.baseAddress)), len: UInt64(area.count))
    }
}
