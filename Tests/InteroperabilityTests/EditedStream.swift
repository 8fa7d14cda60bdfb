import Glibc
import MigrationEngine
import MigrationStream
import Synchronization

/// A channel on which nothing comes, and that keeps what is sent.
final class Sink: MigrationTransport {
    private let sent = Mutex<[UInt8]>([])
    let name = "sink"
    let hasReturnPath: Bool

    init(hasReturnPath: Bool = false) { self.hasReturnPath = hasReturnPath }

    var bytes: [UInt8] { sent.withLock { $0 } }

    func send(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) {
        sent.withLock { sent in
            for piece in pieces { sent += UnsafeRawBufferPointer(start: piece.iov_base, count: piece.iov_len) }
        }
    }
    func receive(_ pieces: UnsafeMutableBufferPointer<iovec>) throws(TransportError) -> Int { 0 }
    func receive(
        _ pieces: UnsafeMutableBufferPointer<iovec>, timeoutMilliseconds: Int
    ) throws(TransportError) -> Int? { 0 }
    func finishSending() {}
    func interrupt() {}
    func setStallLimit(milliseconds: UInt64) {}
    func close() {}
}

/// A captured stream put together again, without its pages, and with something wrong if that is wanted.
struct EditedStream {
    var machineName = "virt"
    var blocks: [RAMBlockDescription]
    var sections: [UnreadSection]
    /// Of the section at this place the footer is left out.
    var withoutFooter: Int?
    var opensReturnPath = false

    init(_ stream: CapturedStream) {
        blocks = stream.blocks
        sections = stream.sections.map { UnreadSection(header: $0.header, body: $0.body) }
    }

    var bytes: [UInt8] {
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: machineName))
        if opensReturnPath { writer.writeCommand(.openReturnPath) }
        let ram = RAMEncoder(blocks: blocks)
        for kind in [SectionKind.start, .end] {
            writer.beginSection(SectionHeader(kind, id: 9999, name: "ram", version: 4))
            if kind == .start { ram.writeBlockList(to: writer) }
            ram.writeEndOfSection(to: writer)
            writer.endSection(id: 9999)
        }
        for (index, section) in sections.enumerated() {
            writer.beginSection(section.header)
            writer.write(section.body)
            if index != withoutFooter { writer.endSection(id: section.header.id) }
        }
        writer.writeEndOfStream()
        writer.writeDescription()
        return writer.bytes
    }
}
