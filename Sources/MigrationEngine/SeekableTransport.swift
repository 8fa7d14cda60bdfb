package import Glibc

/// A channel with places: a file, as `mapped-ram` needs it.
package protocol SeekableTransport: MigrationTransport {
    /// False when what is behind it is a pipe or a socket after all.
    var isSeekable: Bool { get }
    /// Where in the file the next byte is sent or received.
    func position() throws(TransportError) -> UInt64
    func seek(to offset: UInt64) throws(TransportError)
    /// Sends every byte of all pieces to a place of the file; the position stays. Any thread. Entries may be changed.
    func send(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) throws(TransportError)
    /// Receives from a place of the file: at least one byte, 0 at its end; the position stays. Any thread.
    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) throws(TransportError) -> Int
}

extension MigrationTransport {
    /// This channel as a file, if it is one.
    package var seekable: (any SeekableTransport)? {
        guard let transport = self as? any SeekableTransport, transport.isSeekable else { return nil }
        return transport
    }
}

extension SeekableTransport {
    /// Receives exactly so many bytes from a place of the file.
    /// - Throws: ``TransportError/closed`` when the file ends before.
    package func receiveAll(
        _ byteCount: Int, into destination: UnsafeMutableRawPointer, at offset: UInt64
    ) throws(TransportError) {
        var done = 0
        while done < byteCount {
            var piece = unsafe iovec(iov_base: destination + done, iov_len: byteCount - done)
            let count = try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
                try unsafe receive(
                    UnsafeMutableBufferPointer(start: pointer, count: 1), at: offset + UInt64(done))
            }
            guard count > 0 else { throw .closed }
            done += count
        }
    }

    /// Sends bytes to a place of the file.
    package func sendAll(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(TransportError) {
        var piece = unsafe iovec(
            iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        try unsafe withUnsafeMutablePointer(to: &piece) { (pointer) throws(TransportError) in
            try unsafe send(UnsafeMutableBufferPointer(start: pointer, count: 1), at: offset)
        }
    }
}
