/// The CONFIGURATION record: what both sides must agree on before anything else. Directly after the header.
package struct StreamConfiguration: Hashable, Sendable {
    /// `virt`. Compare it whole; stock readers take a prefix.
    package var machineName: String
    /// Bits of an offset into a page, when above the processor's minimum. Absent means the minimum.
    package var pageBits: UInt32?
    /// Capabilities both sides must have on, in the source's order. Nil when the source lists none. A receiver refuses
    /// a name it does not know, stock ones too: this is where an extension is announced.
    package var capabilities: [String]?
    /// 16 bytes, when the source validates it.
    package var uuid: [UInt8]?

    package init(
        machineName: String, pageBits: UInt32? = nil, capabilities: [String]? = nil, uuid: [UInt8]? = nil
    ) {
        self.machineName = machineName
        self.pageBits = pageBits
        self.capabilities = capabilities
        self.uuid = uuid
    }

    static let pageBitsName = "configuration/target-page-bits"
    static let capabilitiesName = "configuration/capabilities"
    static let uuidName = "configuration/uuid"

    /// Decodes the body. `cursor` stands behind the type byte. One byte beyond the record must be there, because only
    /// that tells whether another subsection follows.
    static func decode(
        from cursor: inout StreamCursor, limits: StreamLimits
    ) throws(StreamError) -> StreamConfiguration {
        let start = cursor.offset
        let nameByteCount = try cursor.readInteger(as: UInt32.self)
        guard nameByteCount <= limits.machineNameByteCount else {
            throw StreamError(.limitExceeded("machine name of \(nameByteCount) bytes"), at: start)
        }
        var configuration = StreamConfiguration(machineName: try cursor.readText(Int(nameByteCount)))
        while try cursor.peekByte() == RecordType.subsection.rawValue {
            let start = cursor.offset
            try cursor.skip(1)
            let name = try cursor.readShortString()
            let version = try cursor.readInteger(as: UInt32.self)
            guard version == 1 else { throw StreamError(.unsupportedVersion(version), at: start) }
            switch name {
            case pageBitsName where configuration.pageBits == nil:
                let bits = try cursor.readInteger(as: UInt32.self)
                guard (10...30).contains(bits) else {
                    throw StreamError(.invalid("pages of 2^\(bits) bytes"), at: start)
                }
                configuration.pageBits = bits
            case capabilitiesName where configuration.capabilities == nil:
                let count = try cursor.readInteger(as: UInt32.self)
                guard count <= limits.capabilityCount else {
                    throw StreamError(.limitExceeded("\(count) capabilities"), at: start)
                }
                var capabilities: [String] = []
                for _ in 0..<count {
                    let capability = try cursor.readShortString()
                    guard !capabilities.contains(capability) else {
                        throw StreamError(.invalid("capability \(capability) is listed twice"), at: start)
                    }
                    capabilities.append(capability)
                }
                configuration.capabilities = capabilities
            case uuidName where configuration.uuid == nil:
                configuration.uuid = try cursor.readBytes(16)
            default:
                throw StreamError(.unexpectedRecord("subsection \(name) of CONFIGURATION"), at: start)
            }
        }
        return configuration
    }

    func encode(to writer: StreamWriter) {
        writer.write(UInt32(machineName.utf8.count))
        writer.writeText(machineName)
        func begin(_ name: String) {
            writer.write(RecordType.subsection.rawValue)
            writer.writeShortString(name)
            writer.write(UInt32(1))
        }
        if let pageBits {
            begin(Self.pageBitsName)
            writer.write(pageBits)
        }
        if let capabilities {
            begin(Self.capabilitiesName)
            writer.write(UInt32(capabilities.count))
            for capability in capabilities { writer.writeShortString(capability) }
        }
        if let uuid {
            precondition(uuid.count == 16, "a uuid has 16 bytes")
            begin(Self.uuidName)
            writer.write(uuid)
        }
    }
}
