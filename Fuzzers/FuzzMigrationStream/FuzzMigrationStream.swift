import ComponentState
import MigrationStream

/// A component that reads what a device might, so that the state decoder is reached.
private final class Sample: StatefulComponent {
    let sectionName = "sample"
    let instance: UInt32 = 0
    let readableVersions: ClosedRange<UInt32> = 1...2

    func sectionVersion(for layout: StateLayout) -> UInt32? { 2 }

    func codeState(with coder: inout any StateCoder) throws(StateError) {
        var byte: UInt8 = 0
        var words = [UInt32](repeating: 0, count: 4)
        var bytes = [UInt8](repeating: 0, count: 5)
        var flag = false
        var expiry: Int64?
        var count = 0
        try coder.uint8("byte", &byte)
        try coder.bool("flag", &flag)
        try coder.uint32Array("words", &words)
        try coder.timer("timer", &expiry)
        try coder.list("list", type: "element", version: 1, count: &count, countMax: 16) {
            (coder: inout any StateCoder, _: Int) throws(StateError) in
            try coder.uint8("element", &byte)
        }
        try coder.structure("inner", type: "inner", version: 1) { (coder: inout any StateCoder) throws(StateError) in
            try coder.buffer("bytes", &bytes)
            try coder.subsections([
                Subsection("inner/more", isNeeded: false) { (coder: inout any StateCoder) throws(StateError) in
                    try coder.unused(3)
                }
            ])
        }
        try coder.subsections([
            Subsection("sample/more", isNeeded: false) { (coder: inout any StateCoder) throws(StateError) in
                try coder.uint32Equal("constant", 7)
            }
        ])
    }
}

private struct Walk {
    var reader = StreamReader()
    var ram: RAMDecoder
    var stream: [UInt8]

    mutating func run(_ cursor: inout StreamCursor, depth: Int) throws(StreamError) {
        while !reader.isDone && !cursor.isAtEnd {
            switch try reader.next(&cursor) {
            case .section(let header):
                try body(header, &cursor)
                try reader.endSection(&cursor)
            case .command(.packaged(let byteCount)):
                var package = try reader.readPackage(&cursor, byteCount: byteCount)
                if depth < 4 { try run(&package, depth: depth + 1) }
            case .description(let json):
                let description = try VMDescription.parse(json)
                precondition(
                    try! VMDescription.parse(description.json) == description, "description does not come back")
                for device in description.devices {
                    var cursor = StreamCursor(stream, isFinal: true)
                    guard let found = try? DissectedStructure.decode(device.content, from: &cursor) else { continue }
                    let writer = StreamWriter()
                    found.encode(to: writer)
                    precondition(writer.bytes == Array(stream.prefix(Int(cursor.offset))), "fields do not come back")
                }
            default: break
            }
        }
    }

    private mutating func body(_ header: SectionHeader, _ cursor: inout StreamCursor) throws(StreamError) {
        if header.name == "ram" {
            try ram.beginSection(header.kind, version: header.version, at: cursor.offset)
            while true {
                switch try ram.next(&cursor) {
                case .page: try cursor.skip(4096)
                case .xbzrlePage(_, _, let encoded): try cursor.skip(encoded)
                case .endOfSection: return
                default: break
                }
            }
        } else if header.name == "sample" {
            try SectionDecoder.decode(Sample(), header: header, layout: .native, from: &cursor)
        } else {
            let found = SectionSearch.distanceToFooter(
                of: header.id, from: cursor, knownSections: Set(reader.knownSections.keys), isFinal: true)
            guard let found else { throw StreamError(.truncated, at: cursor.offset) }
            try cursor.skip(found)
        }
    }
}

/// What is found does not depend on how the bytes arrive.
private func analyse(_ bytes: [UInt8]) {
    func report(_ pieces: Int) -> (StreamReport, StreamError?) {
        var options = StreamAnalysis.Options()
        options.trackedRAMByteCountMax = 1 << 30
        var analysis = StreamAnalysis(options: options, inputByteCount: 64)
        do throws(StreamError) {
            var position = 0
            while position < bytes.count {
                let end = position + min(pieces, bytes.count - position)
                analysis.input.append(bytes[position..<end])
                try analysis.run()
                position = end
            }
            try analysis.run(isFinal: true)
        } catch { return (analysis.report, error) }
        return (analysis.report, nil)
    }
    let (whole, failure) = report(Int.max / 2)
    let (pieces, otherFailure) = report(7)
    guard failure == nil, otherFailure == nil else {
        precondition(
            (failure == nil) == (otherFailure == nil),
            "\(String(describing: failure)), in pieces \(String(describing: otherFailure))")
        return
    }
    precondition(whole == pieces, "another report in pieces")
    _ = whole.text(showsFields: true)
    _ = try! DescriptionJSON.parse(whole.json(showsFields: true))
    precondition(StreamDifference.lines(whole, pieces).isEmpty, "a stream differs from itself")
}

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = unsafe [UInt8](UnsafeBufferPointer(start: start, count: count))
    var options = RAMStreamOptions()
    options.flipsPages = true
    var walk = Walk(ram: RAMDecoder(takingAnyBlock: options), stream: bytes)
    var cursor = StreamCursor(bytes, isFinal: true)
    try? walk.run(&cursor, depth: 0)
    analyse(bytes)
    return 0
}
