/// What stands behind a console device: a terminal, a socket, a file. Implemented in HostBackends.
package protocol ConsoleBackend: AnyObject, Sendable {
    /// Sends bytes out; answers how many were taken. 0 means full: the backend calls `writable` when there is room.
    /// A backend that has nobody listening drops bytes and takes them all.
    func write(_ bytes: [UInt8]) -> Int
    /// Installs the device's side. `input` gets arriving bytes and answers how many it took; the backend keeps the rest
    /// and offers it again after ``inputIsWanted()``. Both are called on the backend's thread.
    func connect(input: @escaping @Sendable ([UInt8]) -> Int, writable: @escaping @Sendable () -> Void)
    /// The device has room for input again.
    func inputIsWanted()
    /// Stops delivering input and finishes output calls, until ``resume()``. Returns when no callback is running.
    func quiesce()
    func resume()
}

/// What stands behind a block device. Calls block the calling (device) thread.
package protocol BlockBackend: AnyObject, Sendable {
    /// Bytes; a multiple of 512.
    var byteCount: UInt64 { get }
    var isReadOnly: Bool { get }
    /// Whether ``discard(offset:byteCount:)`` frees space.
    var supportsDiscard: Bool { get }
    /// Fills the whole buffer from `offset`.
    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BackendError)
    /// Writes the whole buffer at `offset`.
    func write(offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(BackendError)
    /// Returns when what was written is on stable storage.
    func flush() throws(BackendError)
    func discard(offset: UInt64, byteCount: UInt64) throws(BackendError)
    /// - Parameter mayUnmap: The space may be given back to the file system.
    func writeZeroes(offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BackendError)
}

/// What stands behind a network device: a tap, a `passt` socket.
package protocol NetworkBackend: AnyObject, Sendable {
    /// Sends one Ethernet frame (no virtio header). False: full, dropped or to be retried after `writable`.
    func send(_ frame: UnsafeRawBufferPointer) -> Bool
    /// Installs the device's side. `receive` gets one frame and answers false when the device has no buffer: the backend
    /// keeps the frame and stops reading until ``receiveIsWanted()``. Called on the backend's thread.
    func connect(
        receive: @escaping @Sendable (UnsafeRawBufferPointer) -> Bool, writable: @escaping @Sendable () -> Void)
    func receiveIsWanted()
    func quiesce()
    func resume()
}

/// A backend that failed; becomes an I/O error in the guest.
package struct BackendError: Error, Sendable, CustomStringConvertible {
    /// errno of the host, 0 if there was none.
    package let errorNumber: Int32
    package let description: String

    package init(errorNumber: Int32, _ description: String) {
        self.errorNumber = errorNumber
        self.description = description
    }
}
