import MigrationStream

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    var options = RAMStreamOptions()
    options.isMapped = true
    var decoder = RAMDecoder(takingAnyBlock: options)
    var cursor = StreamCursor(bytes, isFinal: true)
    do throws(StreamError) {
        while !cursor.isAtEnd {
            guard case .block(let entry) = try decoder.next(&cursor), let mapped = entry.mapped else { continue }
            let end = mapped.end(byteCount: entry.byteCount)
            precondition(mapped.pagesOffset < end && mapped.bitmapOffset < mapped.pagesOffset, "areas overlap")
            if mapped.bitmapOffset < UInt64(bytes.count) {
                var bitmapCursor = StreamCursor(bytes.dropFirst(Int(mapped.bitmapOffset)), isFinal: true)
                if let pageCount = Int(exactly: entry.byteCount / 4096) {
                    let bitmap = try? MappedRAMBitmap.decode(from: &bitmapCursor, pageCount: pageCount)
                    if let bitmap, pageCount > 0 { _ = bitmap[pageCount - 1] }
                }
            }
            guard end < UInt64(bytes.count) else { break }
            cursor = StreamCursor(bytes.dropFirst(Int(end)), at: end, isFinal: true)
        }
    } catch {}
    return 0
}
