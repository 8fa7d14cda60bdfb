extension StreamReport {
    /// The report as text for a terminal, without a newline at the end.
    /// - Parameter showsFields: Every field of every component, with its value.
    package func text(showsFields: Bool = false) -> String {
        var lines: [String] = []
        var head = "\(byteCount) bytes"
        if let origin { head += ", \(origin)" }
        if let runState { head += ", guest was \(runState)" }
        if !isComplete { head += ", not complete" }
        lines.append(head)
        if let configuration {
            lines.append("machine      \(configuration.machineName)")
            if let capabilities = configuration.capabilities {
                lines.append("capabilities \(capabilities.joined(separator: " "))")
            }
            if let bits = configuration.pageBits { lines.append("page         2^\(bits) bytes") }
            if let uuid = configuration.uuid {
                lines.append("uuid         " + uuid.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined())
            }
        }
        for command in commands { lines.append("command      \(command.command) at \(command.offset)") }
        if !blocks.isEmpty {
            lines.append("")
            // Columns of what did not occur would only make lines wrap.
            let columns: [(head: String, value: (Block) -> UInt64?)] = [
                ("bytes", { $0.byteCount }), ("pages", { $0.pages }), ("of zeroes", { $0.pagesOfZeroes }),
                ("filled", { $0.filledPages }), ("xbzrle", { $0.xbzrlePages }), ("flipped", { $0.flippedPages }),
                ("mapped", { $0.mappedPages }), ("repeated", { $0.repeatedPages }),
            ].filter { column in blocks.contains { column.value($0) != 0 } }
            lines += Self.table(
                ["RAM block"] + columns.map(\.head),
                blocks.map { block in [block.name] + columns.map { $0.value(block).map(String.init) ?? "?" } })
            lines.append(
                "RAM sections hold \(ramSectionByteCount) bytes, \(partCount) parts between the first and the last")
        }
        if !sections.isEmpty {
            lines.append("")
            if showsFields {
                for section in sections { lines += fieldLines(section) }
            } else {
                let rows = Self.table(
                    ["section", "version", "bytes", "at", ""],
                    sections.map { section in
                        [
                            StreamDifference.sectionName(section), String(section.header.version),
                            String(section.byteCount), String(section.offset),
                            section.content == nil ? "not described" : "",
                        ]
                    })
                lines.append(rows[0])
                for (row, section) in zip(rows.dropFirst(), sections) {
                    lines.append(row)
                    let names = section.content.map { Self.subsectionNames($0) } ?? []
                    if !names.isEmpty { lines.append("  with \(names.joined(separator: " "))") }
                }
            }
        }
        if descriptionByteCount > 0 { lines.append("self-description of \(descriptionByteCount) bytes") }
        if !remarks.isEmpty { lines.append("") }
        for remark in remarks { lines.append("note: \(remark)") }
        return lines.joined(separator: "\n")
    }

    private static func subsectionNames(_ structure: DissectedStructure) -> [String] {
        var names: [String] = []
        for field in structure.fields {
            switch field.value {
            case .structure(let nested): names += subsectionNames(nested)
            case .structures(let nested): for element in nested { names += subsectionNames(element) }
            default: break
            }
        }
        for subsection in structure.subsections { names += [subsection.name] + subsectionNames(subsection) }
        return names
    }

    private func fieldLines(_ section: Section) -> [String] {
        var lines = [
            "\(StreamDifference.sectionName(section)) version \(section.header.version), \(section.byteCount) bytes"
        ]
        if let content = section.content {
            lines += Self.fieldLines(content, indent: "  ")
        } else if !section.body.isEmpty {
            lines.append("  \(DissectedField.Value.bytes(section.body).text)")
        }
        return lines
    }

    private static func fieldLines(_ structure: DissectedStructure, indent: String) -> [String] {
        var lines: [String] = []
        for field in structure.fields {
            let name = field.fullName
            switch field.value {
            case .structure(let nested):
                lines.append("\(indent)\(name): \(nested.name)")
                lines += fieldLines(nested, indent: indent + "  ")
            case .structures(let elements):
                for (index, nested) in elements.enumerated() {
                    lines.append("\(indent)\(name)[\(index)]: \(nested.name)")
                    lines += fieldLines(nested, indent: indent + "  ")
                }
            default: lines.append("\(indent)\(name) = \(field.value.text)")
            }
        }
        for subsection in structure.subsections {
            lines.append("\(indent)subsection \(subsection.name) version \(subsection.version)")
            lines += fieldLines(subsection, indent: indent + "  ")
        }
        return lines
    }

    /// Columns as wide as their widest entry; all but the first and the last to the right.
    private static func table(_ heads: [String], _ rows: [[String]]) -> [String] {
        let widths = heads.indices.map { column in ([heads] + rows).map { $0[column].count }.max() ?? 0 }
        return ([heads] + rows).map { row in
            var line = ""
            for (column, cell) in row.enumerated() {
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                let isText = column == 0 || (column == row.count - 1 && Int(rows.first?[column] ?? "") == nil)
                line += isText ? cell + padding : padding + cell
                line += "  "
            }
            while line.last == " " { line.removeLast() }
            return line
        }
    }

    /// The report as JSON, for programs. Values of fields are numbers where they are numbers, else text.
    /// - Parameter showsFields: Every field of every component.
    package func json(showsFields: Bool = false) -> [UInt8] {
        func object(_ members: [(String, DescriptionJSON)]) -> DescriptionJSON {
            .object(members.map { .init(key: $0.0, value: $0.1) })
        }
        func number(_ value: some BinaryInteger) -> DescriptionJSON {
            Int64(exactly: value).map { .integer($0) } ?? .number("\(value)")
        }
        func structure(_ content: DissectedStructure) -> DescriptionJSON {
            var members = content.fields.map { field in
                let name = field.fullName
                let value: DescriptionJSON =
                    switch field.value {
                    case .unsigned(let value): number(value)
                    case .signed(let value): number(value)
                    case .boolean(let value): .boolean(value)
                    case .timer(let expiry): expiry.map { number($0) } ?? .null
                    case .integers(let values): .array(values.map { number($0) })
                    case .bytes(let bytes):
                        .string(bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined())
                    case .structure(let nested): structure(nested)
                    case .structures(let nested): .array(nested.map(structure))
                    }
                return (name, value)
            }
            members += content.subsections.map { ($0.name, structure($0)) }
            return object(members)
        }
        var members: [(String, DescriptionJSON)] = [
            ("bytes", number(byteCount)), ("complete", .boolean(isComplete)),
        ]
        if let origin { members.append(("origin", .string(origin))) }
        if let runState { members.append(("run-state", .string(runState))) }
        if let configuration {
            members.append(("machine", .string(configuration.machineName)))
            members.append(("capabilities", .array((configuration.capabilities ?? []).map { .string($0) })))
        }
        members.append(
            (
                "commands",
                .array(commands.map { object([("at", number($0.offset)), ("command", .string("\($0.command)"))]) })
            ))
        members.append(("parts", number(partCount)))
        members.append(("ram-section-bytes", number(ramSectionByteCount)))
        members.append(
            (
                "ram-blocks",
                .array(
                    blocks.map { block in
                        object([
                            ("name", .string(block.name)), ("bytes", number(block.byteCount)),
                            ("pages", number(block.pages)), ("pages-of-zeroes", number(block.pagesOfZeroes)),
                            ("filled-pages", number(block.filledPages)), ("xbzrle-pages", number(block.xbzrlePages)),
                            ("flipped-pages", number(block.flippedPages)), ("mapped-pages", number(block.mappedPages)),
                            ("repeated-pages", block.repeatedPages.map { number($0) } ?? .null),
                        ])
                    })
            ))
        members.append(
            (
                "sections",
                .array(
                    sections.map { section in
                        var members: [(String, DescriptionJSON)] = [
                            ("name", .string(section.header.name)), ("instance", number(section.header.instance)),
                            ("version", number(section.header.version)), ("bytes", number(section.byteCount)),
                            ("at", number(section.offset)),
                        ]
                        if showsFields, let content = section.content { members.append(("fields", structure(content))) }
                        return object(members)
                    })
            ))
        members.append(("notes", .array(remarks.map { .string($0) })))
        var bytes: [UInt8] = []
        object(members).serialise(into: &bytes)
        return bytes
    }
}
