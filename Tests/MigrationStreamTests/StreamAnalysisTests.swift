import MigrationStream
import Testing

private func analyse(
    _ bytes: [UInt8], chunk: Int = 1 << 16, options: StreamAnalysis.Options = StreamAnalysis.Options()
) throws(StreamError) -> StreamReport {
    var analysis = StreamAnalysis(options: options, inputByteCount: 4096)
    var position = 0
    while position < bytes.count {
        let end = min(position + chunk, bytes.count)
        analysis.input.append(bytes[position..<end])
        try analysis.run()
        position = end
    }
    try analysis.run(isFinal: true)
    return analysis.report
}

@Suite("Analysis of a stream")
struct StreamAnalysisTests {
    @Test(
        "every captured stream is understood to the last byte, however it is cut",
        arguments: Corpus.streams + ["none-mapped-ram-10.0"])
    func captured(name: String) throws {
        let bytes = try Corpus.bytes(name)
        let report = try analyse(bytes)
        #expect(report.byteCount == UInt64(bytes.count))
        #expect(report.isComplete)
        let isPostcopy = name.contains("postcopy")
        #expect(report.remarks == (isPostcopy ? ["the stream does not describe itself"] : []))
        #expect(report.sections.allSatisfy { ($0.content != nil) != isPostcopy })
        #expect(report.text(showsFields: true).count > 200)
        _ = try DescriptionJSON.parse(report.json(showsFields: true))
        if bytes.count < 200_000 { #expect(try analyse(bytes, chunk: 4099) == report) }
    }

    @Test("a small stream byte by byte gives the same report")
    func byteByByte() throws {
        let bytes = try Corpus.bytes("none-10.0")
        #expect(try analyse(bytes, chunk: 1) == analyse(bytes))
    }

    @Test("a stream cut anywhere is reported as cut, and keeps what was seen")
    func cut() throws {
        let bytes = try Corpus.bytes("none-10.0")
        for length in stride(from: 0, to: bytes.count, by: 7) {
            var analysis = StreamAnalysis()
            analysis.input.append(bytes[..<length])
            do throws(StreamError) {
                try analysis.run()
                try analysis.run(isFinal: true)
                #expect(analysis.report.isComplete)
            } catch {
                #expect(!analysis.report.isComplete || error.reason == .truncated)
            }
            #expect(analysis.report.byteCount <= UInt64(length))
        }
    }

    @Test("pages are counted by kind, and those sent again are told apart")
    func pages() throws {
        let writer = StreamWriter()
        let blocks = [
            RAMBlockDescription(name: "ram", byteCount: 0x10_000), RAMBlockDescription(name: "rom", byteCount: 0x2000),
        ]
        var ram = RAMEncoder(blocks: blocks)
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: "virt"))
        writer.beginSection(SectionHeader(.start, id: 1, name: "ram", version: 4))
        ram.writeBlockList(to: writer)
        ram.writeEndOfSection(to: writer)
        writer.endSection(id: 1)
        writer.beginSection(SectionHeader(.part, id: 1, name: "ram", version: 4))
        for page in [0, 1, 2, 1] {
            ram.writePageHeader(BlockReference(0), offset: UInt64(page) * 4096, to: writer)
            writer.write([UInt8](repeating: page == 2 ? 0 : 7, count: 4096))
        }
        ram.writeFilledPage(BlockReference(1), offset: 0x1000, to: writer)
        ram.writeFilledPage(BlockReference(0), offset: 0, to: writer)
        ram.writeXBZRLEPage(BlockReference(0), offset: 0x1000, encoded: [UInt8]([3, 1, 9]).span.bytes, to: writer)
        ram.writeEndOfSection(to: writer)
        writer.endSection(id: 1)
        writer.beginSection(SectionHeader(.end, id: 1, name: "ram", version: 4))
        ram.writeEndOfSection(to: writer)
        writer.endSection(id: 1)
        writer.writeEndOfStream()
        writer.writeDescription()
        let report = try analyse(writer.bytes, chunk: 1000)
        var expected = StreamReport.Block(name: "ram", byteCount: 0x10_000)
        expected.pages = 4
        expected.pagesOfZeroes = 1
        expected.filledPages = 1
        expected.xbzrlePages = 1
        expected.xbzrleByteCount = 3
        expected.repeatedPages = 3
        #expect(report.blocks[0] == expected)
        #expect(report.blocks[1].filledPages == 1 && report.blocks[1].repeatedPages == 0)
        #expect(report.partCount == 1)
    }

    @Test("two streams differ in what differs")
    func difference() throws {
        var options = StreamAnalysis.Options()
        options.keepsPageDigests = true
        let first = try analyse(Corpus.bytes("virt-7.2"), options: options)
        #expect(StreamDifference.lines(first, first).isEmpty)
        let devices = try analyse(Corpus.bytes("virt-devices-7.2"), options: options)
        let lines = StreamDifference.lines(first, devices)
        #expect(lines.contains("virtio-mmio@0000000010008000/virtio-rng: only in the second"))
        let newer = try analyse(Corpus.bytes("virt-10.0"), options: options)
        let versions = StreamDifference.lines(first, newer)
        #expect(versions.contains("cpu: version 5, 10"))
        #expect(versions.contains("cpu.env.features: only in the first"))
        #expect(versions.contains("cpu.env.mvien: only in the second"))
        var bytes = try Corpus.bytes("virt-7.2")
        // The first page of RAM with contents, one byte of it.
        let name = Array("riscv_virt_board.mrom".utf8)
        let place = try #require(
            bytes.indices.last { $0 + name.count < bytes.count && Array(bytes[$0..<$0 + name.count]) == name })
        bytes[place + name.count + 100] ^= 1
        let changed = try analyse(bytes, options: options)
        #expect(StreamDifference.lines(first, changed) == ["RAM block riscv_virt_board.mrom: 1 pages differ: 0x0"])
    }

    @Test("what looks like a footer is none when a cut-off command follows, however the bytes arrive")
    func footerLookalike() throws {
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: "virt"))
        for name in ["timer", "timer"] {
            writer.beginSection(SectionHeader(.full, id: 1, name: name, version: 2))
            writer.write(Array(name.utf8))
            writer.writeZeroes(name.count)
            writer.endSection(id: 1)
            let ranges = Array(repeating: StreamCommand.DiscardedRange(offset: 0, byteCount: 4096), count: 100)
            writer.writeCommand(.postcopyDiscard(block: "ram", ranges: ranges))
        }
        writer.writeEndOfStream()
        writer.writeDescription()
        let whole = try analyse(writer.bytes)
        #expect(whole.sections.count == 2 && whole.commands.count == 2)
        for chunk in [1, 7, 100] { #expect(try analyse(writer.bytes, chunk: chunk) == whole) }
        #expect(StreamDifference.lines(whole, whole).isEmpty)
    }

    /// A mapped-ram file with one block of 70 pages, of which some are there, each filled with its byte.
    private func mappedFile(_ pages: [Int: UInt8]) -> [UInt8] {
        let byteCount: UInt64 = 70 * 4096
        let writer = StreamWriter()
        writer.writeHeader()
        writer.writeConfiguration(StreamConfiguration(machineName: "virt", capabilities: ["mapped-ram"]))
        writer.beginSection(SectionHeader(.start, id: 1, name: "ram", version: 4))
        var options = RAMStreamOptions()
        options.isMapped = true
        let ram = RAMEncoder(blocks: [RAMBlockDescription(name: "ram", byteCount: byteCount)], options: options)
        writer.write(byteCount | RAMFlags.memorySize.rawValue)
        let mapped = MappedRAMHeader(headerAt: UInt64(writer.count) + 4 + 8, byteCount: byteCount)
        ram.writeBlockEntry(BlockReference(0), mapped: mapped, to: writer)
        var bitmap = MappedRAMBitmap(pageCount: 70)
        for page in pages.keys { bitmap[page] = true }
        bitmap.encode(to: writer)
        writer.writeZeroes(Int(mapped.pagesOffset) - writer.count)
        for page in 0..<70 { writer.write([UInt8](repeating: pages[page] ?? 0, count: 4096)) }
        ram.writeEndOfSection(to: writer)
        writer.endSection(id: 1)
        writer.beginSection(SectionHeader(.end, id: 1, name: "ram", version: 4))
        ram.writeEndOfSection(to: writer)
        writer.endSection(id: 1)
        writer.writeEndOfStream()
        writer.writeDescription()
        return writer.bytes
    }

    @Test("pages of mapped-ram files are compared, however the file is cut")
    func mappedPages() throws {
        var options = StreamAnalysis.Options()
        options.keepsPageDigests = true
        let first = try analyse(mappedFile([0: 7, 3: 1, 64: 2, 69: 9]), options: options)
        #expect(first.blocks[0].mappedPages == 4 && first.isComplete)
        for chunk in [4095, 65_537] {
            #expect(try analyse(mappedFile([0: 7, 3: 1, 64: 2, 69: 9]), chunk: chunk, options: options) == first)
        }
        #expect(StreamDifference.lines(first, first).isEmpty)
        let second = try analyse(mappedFile([0: 7, 3: 8, 5: 0, 64: 2]), options: options)
        #expect(StreamDifference.lines(first, second) == ["RAM block ram: 2 pages differ: 0x3000 0x45000"])
        // A file that is cut among its pages is.
        #expect(throws: StreamError.self) {
            try analyse(Array(mappedFile([0: 7, 69: 9]).dropLast(9000)), options: options)
        }
    }

    @Test("one section alone can be had, by its name or with its instance, and the RAM blocks as one")
    func sections() throws {
        let report = try analyse(Corpus.bytes("virt-2-harts-7.2"))
        #expect(report.sectionNames.first == "ram" && report.sectionNames.contains("cpu"))
        #expect(report.only(sections: ["cpu"]).sections.map(\.header.instance) == [0, 1])
        #expect(report.only(sections: ["cpu[1]"]).sections.map(\.header.instance) == [1])
        #expect(report.only(sections: ["cpu"]).blocks.isEmpty)
        #expect(
            report.only(sections: ["ram"]).blocks == report.blocks && report.only(sections: ["ram"]).sections.isEmpty)
        #expect(report.only(sections: ["nope"]).sectionNames.isEmpty)
    }

    @Test("what the stream's words say is in the text")
    func text() throws {
        let report = try analyse(Corpus.bytes("virt-10.0"))
        #expect(report.runState == "prelaunch")
        #expect(report.origin == "QEMU 10.0 layout")
        let text = report.text(showsFields: true)
        #expect(text.contains("env.pc = 0x1000"))
        #expect(text.contains("subsection cpu/pmp version 1"))
    }
}
