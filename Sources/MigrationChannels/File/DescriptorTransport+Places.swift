package import Glibc
import LinuxCalls
package import MigrationEngine

/// A regular file has places.
extension DescriptorTransport: SeekableTransport {
    package var isSeekable: Bool { file != nil }

    private var wholeFile: OwnedDescriptor {
        get throws(TransportError) {
            guard let file else { throw .failed(SystemCallError("lseek", .illegalSeek, subject: name)) }
            if isInterrupted { throw .interrupted }
            return file
        }
    }

    package func position() throws(TransportError) -> UInt64 {
        let file = try wholeFile
        do throws(SystemCallError) { return UInt64(try GatheredIO.position(of: file)) } catch { throw .failed(error) }
    }

    package func seek(to offset: UInt64) throws(TransportError) {
        let file = try wholeFile
        do throws(SystemCallError) { try GatheredIO.seek(file, to: Int(clamping: offset)) } catch {
            throw .failed(error)
        }
    }

    package func send(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) throws(TransportError) {
        var index = 0
        var place = offset
        while index < pieces.count {
            let file = try wholeFile
            let left = unsafe UnsafeMutableBufferPointer(rebasing: pieces[index...])
            do throws(SystemCallError) {
                let taken = try unsafe GatheredIO.write(left, to: file, at: place)
                place += UInt64(taken)
                unsafe Self.advance(pieces, &index, by: taken)
            } catch { throw .failed(error) }
        }
    }

    package func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64
    ) throws(TransportError) -> Int {
        let file = try wholeFile
        do throws(SystemCallError) { return try unsafe GatheredIO.read(pieces, from: file, at: offset) } catch {
            throw .failed(error)
        }
    }
}
