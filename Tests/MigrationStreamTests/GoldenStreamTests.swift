import MigrationStream
import Testing

@Suite("Streams captured from QEMU")
struct GoldenStreamTests {
    static func options(_ name: String) -> RAMStreamOptions {
        var options = RAMStreamOptions()
        options.ignoresShared = name.hasPrefix("none-capabilities")
        return options
    }

    @Test("decode to the last byte and encode to the same bytes", arguments: Corpus.streams)
    func transcode(name: String) throws {
        let bytes = try Corpus.bytes(name)
        var transcoder = Transcoder(bytes, options: Self.options(name))
        var cursor = StreamCursor(bytes, isFinal: true)
        try transcoder.run(&cursor)
        #expect(cursor.isAtEnd)
        expectSame(transcoder.writer.bytes, bytes)
        let isPostcopy = name.contains("postcopy")
        #expect(transcoder.reader.isDone || isPostcopy && transcoder.reader.isAwaitingDescription)
        #expect(transcoder.undescribed.isEmpty || isPostcopy)
        #expect(transcoder.ramDecoder.isListComplete)
        #expect(transcoder.sections.count == transcoder.description?.devices.count ?? 0)
    }

    @Test("every section's described size is its size", arguments: Corpus.streams)
    func sizes(name: String) throws {
        let bytes = try Corpus.bytes(name)
        guard let description = Corpus.description(bytes) else { return }
        for device in description.devices {
            let size = try #require(device.content.byteCount)
            #expect(device.undescribedByteCount == nil || device.undescribedByteCount == size)
        }
    }

    @Test("sections are found by their footers where nothing describes them", arguments: Corpus.streams)
    func footers(name: String) throws {
        let bytes = try Corpus.bytes(name)
        guard let description = Corpus.description(bytes) else { return }
        var reader = StreamReader()
        var ram = RAMDecoder(takingAnyBlock: Self.options(name))
        var cursor = StreamCursor(bytes, isFinal: true)
        while !reader.isDone {
            guard case .section(let header) = try reader.next(&cursor) else { continue }
            if header.name == "ram" {
                try ram.beginSection(header.kind, version: header.version, at: 0)
                words: while true {
                    switch try ram.next(&cursor) {
                    case .page: try cursor.skip(4096)
                    case .xbzrlePage(_, _, let encoded): try cursor.skip(encoded)
                    case .endOfSection: break words
                    default: break
                    }
                }
            } else {
                let found = try #require(
                    SectionSearch.distanceToFooter(
                        of: header.id, from: cursor, knownSections: Set(reader.knownSections.keys), isFinal: true))
                let described = description.device(header.name, instance: header.instance)?.content.byteCount
                #expect(UInt64(found) == described, "\(header.name)")
                try cursor.skip(found)
            }
            try reader.endSection(&cursor)
        }
    }

    @Test("fields have the names and values QEMU gave them")
    func fields() throws {
        let bytes = try Corpus.bytes("virt-7.2")
        var transcoder = Transcoder(bytes)
        var cursor = StreamCursor(bytes, isFinal: true)
        try transcoder.run(&cursor)
        let cpu = try #require(transcoder.sections.first { $0.name == "cpu" })
        #expect(cpu.version == 5)
        #expect(cpu.fields.first { $0.name == "env.pc" }?.value == .unsigned(0x1000))
        #expect(cpu.subsections.map(\.name).contains("cpu/pmp"))
        let state = try #require(transcoder.sections.first { $0.name == "globalstate" })
        #expect(state.fields.first?.value == .unsigned(10))
        guard case .bytes(let runState)? = state.fields.dropFirst().first?.value else {
            Issue.record("no run state")
            return
        }
        #expect(runState.starts(with: "prelaunch".utf8))
    }

    @Test("the capabilities' stream says what was asked of it")
    func capabilities() throws {
        for version in ["7.2", "10.0"] {
            var cursor = StreamCursor(try Corpus.bytes("none-capabilities-" + version))
            var reader = StreamReader()
            _ = try reader.next(&cursor)
            #expect(
                try reader.next(&cursor)
                    == .configuration(
                        StreamConfiguration(
                            machineName: "none", capabilities: ["x-ignore-shared"],
                            uuid: hex("00112233445566778899aabbccddeeff"))))
        }
    }

    @Test("return paths decode to the last byte and encode to the same bytes")
    func returnPaths() throws {
        for name in ["running-return-path-7.2-return", "running-postcopy-7.2-return", "running-postcopy-10.0-return"] {
            let bytes = try Corpus.bytes(name)
            var cursor = StreamCursor(bytes, isFinal: true)
            let writer = StreamWriter()
            var messages: [ReturnPathMessage] = []
            while !cursor.isAtEnd {
                let message = try ReturnPathMessage.decode(from: &cursor)
                message.encode(to: writer)
                messages.append(message)
            }
            #expect(messages.last == .shut(status: 0))
            #expect(writer.bytes == bytes)
        }
    }

    @Test("multifd channels decode to the last byte", arguments: ["7.2", "10.0"])
    func multifd(version: String) throws {
        let blocks: [String: UInt64] = [
            "riscv_virt_board.ram": 4 << 20, "virt.flash0": 32 << 20, "virt.flash1": 32 << 20,
            "riscv_virt_board.mrom": 61440,
        ]
        var pages = 0
        var zeroPages = 0
        for channel in 1...2 {
            let bytes = try Corpus.bytes("running-multifd-\(version)-channel\(channel)")
            var cursor = StreamCursor(bytes, isFinal: true)
            let hello = try MultiFDHello.decode(from: &cursor)
            let writer = StreamWriter()
            hello.encode(to: writer)
            #expect(writer.bytes == Array(bytes.prefix(64)))
            while !cursor.isAtEnd {
                let start = Int(cursor.offset)
                let packet = try MultiFDPacket.decode(
                    from: &cursor, pageSize: 4096, pagesPerPacket: 128, blocks: blocks, hasZeroPages: version != "7.2")
                let writer = StreamWriter()
                packet.encode(to: writer, pageSize: 4096, pagesPerPacket: 128)
                #expect(writer.count == MultiFDPacket.byteCount(pagesPerPacket: 128))
                if version != "7.2" { #expect(writer.bytes == Array(bytes[start..<start + writer.count])) }
                var again = StreamCursor(writer.bytes, isFinal: true)
                #expect(
                    try MultiFDPacket.decode(
                        from: &again, pageSize: 4096, pagesPerPacket: 128, blocks: blocks,
                        hasZeroPages: version != "7.2") == packet)
                pages += packet.pages.count
                zeroPages += packet.zeroPages.count
                try cursor.skip(packet.pages.count * 4096)
            }
        }
        #expect(pages > 0)
        #expect((zeroPages > 0) == (version != "7.2"))
    }

    @Test("the mapped-ram file decodes by its offsets")
    func mappedRAM() throws {
        let bytes = try Corpus.bytes("none-mapped-ram-10.0")
        var reader = StreamReader()
        var cursor = StreamCursor(bytes, isFinal: true)
        #expect(try reader.next(&cursor) == .header)
        #expect(
            try reader.next(&cursor)
                == .configuration(StreamConfiguration(machineName: "none", capabilities: ["mapped-ram"])))
        guard case .section(let header) = try reader.next(&cursor) else {
            Issue.record("no section")
            return
        }
        var options = RAMStreamOptions()
        options.isMapped = true
        var decoder = RAMDecoder(
            blocks: [RAMBlockDescription(name: "ram", byteCount: 1 << 20)], options: options)
        try decoder.beginSection(header.kind, version: header.version, at: cursor.offset)
        #expect(try decoder.next(&cursor) == .memorySize(1 << 20))
        let headerOffset = cursor.offset + 4 + 8
        guard case .block(let entry) = try decoder.next(&cursor), let mapped = entry.mapped else {
            Issue.record("no mapped block")
            return
        }
        #expect(mapped == MappedRAMHeader(headerAt: headerOffset, byteCount: 1 << 20))
        let bitmap = try MappedRAMBitmap.decode(from: &cursor, pageCount: 256)
        #expect(bitmap.words.allSatisfy { $0 == 0 })
        let end = mapped.end(byteCount: entry.byteCount)
        cursor = StreamCursor(Array(bytes[Int(end)...]), at: end, isFinal: true)
        #expect(try decoder.next(&cursor) == .endOfSection)
        try reader.endSection(&cursor)
        var rest: [StreamRecord] = []
        while !reader.isDone {
            let record = try reader.next(&cursor)
            rest.append(record)
            guard case .section(let header) = record else { continue }
            if header.name == "ram" {
                try decoder.beginSection(header.kind, version: header.version, at: cursor.offset)
                #expect(try decoder.next(&cursor) == .endOfSection)
            } else {
                let found = SectionSearch.distanceToFooter(
                    of: header.id, from: cursor, knownSections: Set(reader.knownSections.keys), isFinal: true)
                try cursor.skip(try #require(found))
            }
            try reader.endSection(&cursor)
        }
        #expect(cursor.isAtEnd)
    }

    @Test("the cpr channel decodes to its names and encodes to the same bytes")
    func cpr() throws {
        let bytes = try Corpus.bytes("virt-cpr-10.0")
        var cursor = StreamCursor(bytes, isFinal: true)
        var reader = CPRReader()
        let writer = StreamWriter()
        var records: [CPRRecord] = []
        while !cursor.isAtEnd {
            let record = try reader.next(&cursor)
            records.append(record)
            writer.writeCPR(record)
        }
        #expect(
            records == [
                .header, .descriptor(name: "virt.flash1", id: 0), .descriptor(name: "virt.flash0", id: 0),
                .descriptor(name: "riscv_virt_board.mrom", id: 0), .descriptor(name: "m", id: 0), .endOfDescriptors,
            ])
        #expect(reader.hasAllDescriptors)
        #expect(writer.bytes == bytes)
    }
}
