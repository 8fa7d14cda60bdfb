import MigrationStream

private let blocks = [
    RAMBlockDescription(name: "a", byteCount: 0x10_000, address: 0x8000_0000),
    RAMBlockDescription(name: "b", byteCount: 0x2000, byteCountMax: 0x8000, address: 0x1000),
    RAMBlockDescription(name: "c", byteCount: 0x1000, isIgnored: true),
]

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    guard let selector = bytes.first else { return 0 }
    var options = RAMStreamOptions()
    options.flipsPages = selector & 1 != 0
    options.acceptsFill = selector & 2 != 0
    options.ignoresShared = selector & 4 != 0
    options.hasPostcopy = selector & 8 != 0
    options.isMapped = selector & 16 != 0
    let takesAny = selector & 32 != 0
    var decoder =
        takesAny
        ? RAMDecoder(takingAnyBlock: options) : RAMDecoder(blocks: blocks, options: options)
    if selector & 64 != 0 { decoder.assumeListed() }
    var cursor = StreamCursor(bytes.dropFirst(), isFinal: true)
    var page = [UInt8](repeating: 0x55, count: 4096)
    var records: [RAMRecord] = []
    do throws(StreamError) {
        while !cursor.isAtEnd {
            let record = try decoder.next(&cursor)
            records.append(record)
            switch record {
            case .page(let block, let offset), .filledPage(let block, let offset, _),
                .flippedPage(let block, let offset):
                precondition(offset + 4096 <= decoder.byteCount(of: block), "a page outside its block")
            case .xbzrlePage(let block, let offset, let encoded):
                precondition(offset + 4096 <= decoder.byteCount(of: block), "a page outside its block")
                let differences = try cursor.readBytes(encoded)
                unsafe page.withUnsafeMutableBytes { page in
                    unsafe differences.withUnsafeBytes { _ = try? unsafe XBZRLE.decode($0, into: page) }
                }
            default: break
            }
            if case .flippedPage(let block, let offset) = record {
                // A run that is skipped is what reading one by one finds.
                var (ahead, other) = (cursor, decoder)
                let skipped = decoder.skipFollowingFlippedPages(&ahead, after: offset)
                var single = cursor
                for index in 0..<skipped {
                    let next = UInt64(index + 1) * options.pageSize
                    precondition(
                        try! other.next(&single) == .flippedPage(block, offset: offset + next), "a run is another")
                }
                precondition(single.offset == ahead.offset, "a run ends elsewhere")
            }
        }
    } catch {}
    // What was understood comes back when written and read again.
    guard !options.isMapped, selector & 64 == 0 else { return 0 }
    var sizes = decoder.blocks
    for index in sizes.indices {
        let byteCount = decoder.byteCount(of: BlockReference(index))
        if byteCount > 0 { sizes[index].byteCount = byteCount }
    }
    for case .block(let entry) in records {
        // Only that of an ignored block must be the local one.
        if let address = entry.address { sizes[entry.reference.index].address = address }
    }
    var encoder = RAMEncoder(blocks: sizes, options: options)
    let writer = StreamWriter()
    for record in records {
        if case .xbzrlePage(let block, let offset, _) = record {
            encoder.write(.xbzrlePage(block, offset: offset, encodedByteCount: 0), to: writer)
        } else {
            encoder.write(record, to: writer)
        }
    }
    var again = takesAny ? RAMDecoder(takingAnyBlock: options) : RAMDecoder(blocks: blocks, options: options)
    var second = StreamCursor(writer.bytes, isFinal: true)
    for record in records {
        let found = try! again.next(&second)
        if case .xbzrlePage = record { continue }
        precondition(found == record, "\(record) came back as \(found)")
    }
    return 0
}
