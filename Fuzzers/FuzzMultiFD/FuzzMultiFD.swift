import MigrationStream

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    guard let selector = bytes.first else { return 0 }
    let hasZeroPages = selector & 1 != 0
    let pagesPerPacket = selector & 2 != 0 ? 128 : 4
    let blocks: [String: UInt64] = ["a": 0x10_000, "ram": 0x2000]
    var cursor = StreamCursor(bytes.dropFirst(), isFinal: true)
    do throws(StreamError) {
        if selector & 4 != 0 { _ = try MultiFDHello.decode(from: &cursor) }
        while !cursor.isAtEnd {
            let packet = try MultiFDPacket.decode(
                from: &cursor, pageSize: 4096, pagesPerPacket: pagesPerPacket, blocks: blocks,
                hasZeroPages: hasZeroPages)
            for offset in packet.pages + packet.zeroPages {
                precondition(offset + 4096 <= blocks[packet.block]!, "a page outside its block")
            }
            let writer = StreamWriter()
            packet.encode(to: writer, pageSize: 4096, pagesPerPacket: pagesPerPacket)
            var again = StreamCursor(writer.bytes, isFinal: true)
            let found = try MultiFDPacket.decode(
                from: &again, pageSize: 4096, pagesPerPacket: pagesPerPacket, blocks: blocks, hasZeroPages: hasZeroPages
            )
            precondition(found == packet, "a packet does not come back")
        }
    } catch {}
    return 0
}
