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
    /// How section ram is damaged.
    var ram: RAMDamage?
    /// Written behind the end.
    var description: VMDescription
    /// Sources need not send one.
    var isDescribed = true

    /// What can be wrong with section ram.
    enum RAMDamage: CaseIterable, Sendable {
        case missing, withoutEnd, doubled, cut, tooLong, otherVersion, withoutFooter, unknownBlock, outsideBlock
        case unknownFlags
    }

    init(_ stream: CapturedStream) {
        blocks = stream.blocks
        description = stream.description
        sections = stream.sections.map { UnreadSection(header: $0.header, body: $0.body) }
    }

    /// What comes behind the last section's body: its footer, the end, and the description.
    var tailByteCount: Int { 5 + 1 + 5 + description.json.count }

    var bytes: [UInt8] {
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: machineName))
        if opensReturnPath { writer.writeCommand(.openReturnPath) }
        writeRAM(to: writer)
        for (index, section) in sections.enumerated() {
            writer.beginSection(section.header)
            writer.write(section.body)
            if index != withoutFooter { writer.endSection(id: section.header.id) }
        }
        writer.writeEndOfStream()
        if isDescribed { writer.writeDescription(description.json) }
        return writer.bytes
    }

    /// Section ram: the list of blocks, and no page.
    private func writeRAM(to writer: StreamWriter) {
        guard ram != .missing else { return }
        let encoder = RAMEncoder(blocks: blocks)
        for kind in ram == .doubled ? [SectionKind.start, .end, .start, .end] : [.start, .end] {
            if kind == .end && ram == .withoutEnd { continue }
            writer.beginSection(SectionHeader(kind, id: 9999, name: "ram", version: ram == .otherVersion ? 3 : 4))
            let start = writer.count
            if kind == .start { encoder.writeBlockList(to: writer) }
            if kind == .end { writeWrongPage(to: writer) }
            encoder.writeEndOfSection(to: writer)
            if kind == .end && ram == .tooLong { writer.write(UInt8(0)) }
            if kind == .start && ram == .cut { writer.truncate(to: start + (writer.count - start) / 2) }
            if kind == .start || ram != .withoutFooter { writer.endSection(id: 9999) }
        }
    }

    /// The record of a page full of zeroes that no receiver can have.
    private func writeWrongPage(to writer: StreamWriter) {
        let block = "riscv_virt_board.ram"
        switch ram {
        case .unknownBlock:
            writer.write(RAMFlags.filled.rawValue)
            writer.writeShortString("nobodys.ram")
            writer.write(UInt8(0))
        case .outsideBlock:
            writer.write((blocks.first { $0.name == block }?.byteCount ?? 0) | RAMFlags.filled.rawValue)
            writer.writeShortString(block)
            writer.write(UInt8(0))
        case .unknownFlags:
            writer.write(RAMFlags.compressedPage.rawValue)
            writer.writeShortString(block)
        default: break
        }
    }
}
