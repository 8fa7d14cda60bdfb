/// What ``StreamAnalysis`` found in a stream.
package struct StreamReport: Hashable, Sendable {
    /// A record other than a section of RAM, in stream order.
    package struct Command: Hashable, Sendable {
        package var offset: UInt64
        package var command: StreamCommand
    }

    /// A component's section.
    package struct Section: Hashable, Sendable {
        package var header: SectionHeader
        /// Where the body begins.
        package var offset: UInt64
        package var byteCount: UInt64
        /// Nil when the stream does not describe it, or not as it is.
        package var content: DissectedStructure?
        /// The body, when it could not be taken apart; empty for one beyond what is kept.
        package var body: [UInt8]

        package init(
            header: SectionHeader, offset: UInt64, byteCount: UInt64, content: DissectedStructure?, body: [UInt8]
        ) {
            self.header = header
            self.offset = offset
            self.byteCount = byteCount
            self.content = content
            self.body = body
        }
    }

    /// A RAM block and the pages that came for it.
    package struct Block: Hashable, Sendable {
        package var name: String
        package var byteCount: UInt64
        package var address: UInt64?
        /// Pages with contents.
        package var pages: UInt64 = 0
        /// Of those, pages with nothing but zeroes: sent whole where nine bytes would have done.
        package var pagesOfZeroes: UInt64 = 0
        /// Pages sent as filled with one byte, nearly always zero.
        package var filledPages: UInt64 = 0
        /// Pages sent as differences.
        package var xbzrlePages: UInt64 = 0
        package var xbzrleByteCount: UInt64 = 0
        /// Pages whose contents came through the page-flip pipe.
        package var flippedPages: UInt64 = 0
        /// Pages present in a mapped-ram file.
        package var mappedPages: UInt64 = 0
        /// Records for a page that had come before; nil for a block too large to keep count.
        package var repeatedPages: UInt64? = 0

        package init(name: String, byteCount: UInt64, address: UInt64? = nil) {
            self.name = name
            self.byteCount = byteCount
            self.address = address
        }
    }

    /// Contents of each page at the end of the stream, as digests: equal pages have equal ones. 0 stands for zeroes or
    /// for a page that never came, 1 for contents that are not in the stream.
    package struct PageDigests: Hashable, Sendable {
        package var digests: [UInt64]
    }

    package init() {}

    package var byteCount: UInt64 = 0
    package var configuration: StreamConfiguration?
    package var commands: [Command] = []
    package var sections: [Section] = []
    package var blocks: [Block] = []
    /// Sections of RAM between the first and the last: how often the source went on sending while the guest ran.
    package var partCount = 0
    package var ramSectionByteCount: UInt64 = 0
    /// The end was announced; without it the stream is cut.
    package var isComplete = false
    package var description: VMDescription?
    package var descriptionByteCount: UInt64 = 0
    /// What is odd about the stream, in words.
    package var remarks: [String] = []
    /// By block, when asked for.
    package var pageDigests: [PageDigests] = []

    /// Names of what ``only(sections:)`` can choose from.
    package var sectionNames: [String] {
        (blocks.isEmpty ? [] : ["ram"]) + sections.map { StreamDifference.sectionName($0) }
    }

    /// The same report with the named sections alone: as `name`, which is every instance, or `name[instance]`. `ram`
    /// stands for the RAM blocks.
    package func only(sections names: [String]) -> StreamReport {
        var result = self
        result.sections = sections.filter { section in
            names.contains(section.header.name) || names.contains("\(section.header.name)[\(section.header.instance)]")
        }
        result.commands = []
        result.remarks = remarks.filter { remark in names.contains { remark.contains($0) } }
        if !names.contains("ram") {
            result.blocks = []
            result.pageDigests = []
        }
        return result
    }

    /// What the guest did when it was saved, if the stream says: `running`, `paused`.
    package var runState: String? {
        guard let content = sections.first(where: { $0.header.name == "globalstate" })?.content,
            case .bytes(let bytes)? = content.fields.first(where: { $0.name == "runstate" })?.value
        else { return nil }
        return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }

    /// Which QEMU wrote such a stream, by what only it does.
    package var origin: String? {
        guard description != nil || isComplete else { return nil }
        if let processor = sections.first(where: { $0.header.name == "cpu" }), configuration?.machineName == "virt" {
            switch processor.header.version {
            case 5: return "QEMU 7.2 layout"
            case 10: return "QEMU 10.0 layout"
            case 12: return "QEMU 11 layout"
            default: break
            }
        }
        if description?.configuration != nil { return "QEMU 10 or later" }
        return nil
    }
}
