import MigrationStream

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    var cursor = StreamCursor(bytes, isFinal: true)
    do throws(StreamError) {
        while !cursor.isAtEnd {
            let start = Int(cursor.offset)
            let message = try ReturnPathMessage.decode(from: &cursor)
            let writer = StreamWriter()
            message.encode(to: writer)
            precondition(writer.bytes == Array(bytes[start..<Int(cursor.offset)]), "\(message) does not come back")
            if case .receivedBitmap(let block) = message {
                let pageCount = Int(block.utf8.first ?? 0)
                let start = Int(cursor.offset)
                let bitmap = try ReceivedBitmap.decode(from: &cursor, pageCount: pageCount)
                let writer = StreamWriter()
                bitmap.encode(to: writer)
                precondition(writer.bytes == Array(bytes[start..<Int(cursor.offset)]), "a bitmap does not come back")
            }
        }
    } catch {}
    cursor = StreamCursor(bytes, isFinal: true)
    var cpr = CPRReader()
    let writer = StreamWriter()
    do throws(StreamError) {
        while !cursor.isAtEnd { writer.writeCPR(try cpr.next(&cursor)) }
    } catch {}
    precondition(bytes.starts(with: writer.bytes), "a cpr stream does not come back")
    return 0
}
