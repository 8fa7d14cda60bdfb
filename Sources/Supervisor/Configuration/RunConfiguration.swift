package import ComponentState
package import GuestMemory

/// Everything that decides what a guest is and what it is connected to: the flags of `sidestep run`, the configuration
/// file and what a successor process gets. Complete: two processes with the same configuration build the same machine.
package struct RunConfiguration: Hashable, Sendable {
    package static let memoryByteCountDefault: UInt64 = 512 << 20
    package static let memoryByteCountMin: UInt64 = 1 << 20
    /// Guest-physical addresses of `virt` end at 56 bits; this is a sanity limit, not the machine's.
    package static let memoryByteCountMax: UInt64 = 1 << 40
    package static let processorCountMax = 8
    package static let virtioSlotCount = 8

    package var name: String?
    package var uuid: String?
    package var machine = "virt"
    package var firmware: String?
    package var kernel: String?
    package var initrd: String?
    package var append: String?
    /// Bytes.
    package var memory = memoryByteCountDefault
    package var memoryBackend = MemoryBackend.memfd
    package var processorCount = 1
    /// ISA string as in the device tree; nil is everything the processor has.
    package var isa: String?
    package var virtio = VirtioGeneration.modern
    package var disks: [DiskConfiguration] = []
    package var networks: [NetworkConfiguration] = []
    /// What is in which virtio slot, for a guest that came from elsewhere; nil puts disks, then network cards, then
    /// entropy into the highest slots.
    package var slots: [DeviceSlot]?
    /// The stock release that the guest is to be able to go to; nil is this program.
    package var compatibility: StateLayout?
    package var console: ConsoleConfiguration?
    package var isPaused = false
    package var qmp: [ListenAddress] = []
    /// Where a guest comes from: a migration URI, or `defer`.
    package var incoming: String?
    /// Where RAM's descriptors come first, with mode `cpr-transfer`: a channel as QEMU's `-incoming` takes it.
    package var incomingCPR: String?

    package init() {}

    /// What must hold before anything is opened.
    package func validate() throws(Refusal) {
        if let name { try GuestName.validate(name) }
        guard machine == "virt" else {
            throw Refusal(.usage, "--machine: unknown machine '\(machine)' (there is: virt)")
        }
        guard memory >= Self.memoryByteCountMin, memory <= Self.memoryByteCountMax, memory % 4096 == 0 else {
            throw Refusal(
                .usage,
                "--memory: \(SizeText.format(memory)) is not between \(SizeText.format(Self.memoryByteCountMin)) and "
                    + "\(SizeText.format(Self.memoryByteCountMax)) in pages of 4K")
        }
        guard (1...Self.processorCountMax).contains(processorCount) else {
            throw Refusal(.usage, "--cpus: \(processorCount) is not between 1 and \(Self.processorCountMax)")
        }
        if incoming == nil && firmware == nil && kernel == nil {
            throw Refusal(.usage, "nothing to run: give --kernel, --firmware, or both (or --incoming)")
        }
        if incoming == nil && incomingCPR != nil {
            throw Refusal(.usage, "--incoming: a cpr channel needs a main channel beside it")
        }
        if kernel == nil && initrd != nil { throw Refusal(.usage, "--initrd needs --kernel") }
        for (index, disk) in disks.enumerated() where !disk.isReadOnly {
            if disks[..<index].contains(where: { $0.path == disk.path }) {
                throw Refusal(.usage, "--disk: \(disk.path) is given twice")
            }
        }
        if let slots {
            guard Set(slots.map(\.number)).count == slots.count,
                slots.count(where: { $0.kind == .disk }) == disks.count,
                slots.count(where: { $0.kind == .network }) == networks.count
            else { throw Refusal(.usage, "the configuration's slots are not those of its disks and network cards") }
            return
        }
        // Console and entropy devices take no slot of their own unless asked for; entropy always has one.
        if disks.count + networks.count + 1 > Self.virtioSlotCount {
            throw Refusal(
                .usage,
                "\(disks.count) disks and \(networks.count) network cards do not fit the machine's "
                    + "\(Self.virtioSlotCount) virtio slots (one is for entropy)")
        }
    }
}

/// Which register layout the virtio-mmio slots have.
package enum VirtioGeneration: String, Hashable, Sendable, Codable, CaseIterable { case legacy, modern }

/// A virtio device and where it is.
package struct DeviceSlot: Hashable, Sendable {
    package enum Kind: String, Sendable, CaseIterable { case disk, network, entropy, console }
    package var kind: Kind
    /// 0 to 7, from the lowest address.
    package var number: Int

    package init(_ kind: Kind, number: Int) {
        self.kind = kind
        self.number = number
    }

    /// `disk@7`.
    init(text: String) throws(Refusal) {
        let parts = text.split(separator: "@", maxSplits: 1)
        guard parts.count == 2, let kind = Kind(rawValue: String(parts[0])), let number = Int(parts[1]),
            (0..<RunConfiguration.virtioSlotCount).contains(number)
        else { throw Refusal(.usage, "a slot in the configuration is such as 'disk@7', not '\(text)'") }
        self.init(kind, number: number)
    }

    var text: String { "\(kind.rawValue)@\(number)" }
}

/// One `--disk`.
package struct DiskConfiguration: Hashable, Sendable {
    package var path: String
    package var isReadOnly = false

    package init(path: String, isReadOnly: Bool = false) {
        self.path = path
        self.isReadOnly = isReadOnly
    }

    /// `path=F[,readonly=on]`, or just the path.
    package init(argument text: String) throws(Refusal) {
        if !text.contains("=") {
            self.init(path: text)
        } else {
            let options = try OptionList(text, flag: "--disk", keys: ["path", "readonly"])
            guard let path = options["path"] else { throw Refusal(.usage, "--disk: path=FILE is missing in '\(text)'") }
            self.init(path: path)
            if let text = options["readonly"] {
                isReadOnly = try OptionList.boolean(text, flag: "--disk", key: "readonly")
            }
        }
        if path.isEmpty { throw Refusal(.usage, "--disk: the path is empty") }
    }
}

/// One `--net`.
package struct NetworkConfiguration: Hashable, Sendable {
    package enum Kind: Hashable, Sendable {
        /// A tap interface by name.
        case tap(String)
        /// An open tap or stream socket that was inherited.
        case descriptor(CInt)
        /// A unix stream socket as `passt` serves.
        case socket(String)
        /// A card whose cable is not plugged in.
        case unplugged
    }

    package var kind: Kind
    /// Six bytes; nil is one derived from the guest's name and the card's number.
    package var mac: MACAddress?

    package init(kind: Kind, mac: MACAddress? = nil) {
        self.kind = kind
        self.mac = mac
    }

    /// `tap=IF|fd=N|socket=PATH[,mac=M]`.
    package init(argument text: String) throws(Refusal) {
        var text = text
        let isUnplugged = text == "none" || text.hasPrefix("none,")
        if isUnplugged { text = String(text.dropFirst(5)) }
        let options =
            text.isEmpty && isUnplugged
            ? nil : try OptionList(text, flag: "--net", keys: ["tap", "fd", "socket", "mac"])
        let kinds = ["tap", "fd", "socket"].filter { options?[$0] != nil } + (isUnplugged ? ["none"] : [])
        guard kinds.count == 1, let word = kinds.first, let value = isUnplugged ? "none" : options?[word],
            !value.isEmpty
        else { throw Refusal(.usage, "--net: give one of tap=IF, fd=N, socket=PATH, none in '\(text)'") }
        switch word {
        case "none": kind = .unplugged
        case "tap":
            guard value.utf8.count < 16 else { throw Refusal(.usage, "--net: '\(value)' is too long for an interface") }
            kind = .tap(value)
        case "fd":
            guard let number = CInt(value), number >= 0 else {
                throw Refusal(.usage, "--net: fd is the number of an open descriptor, not '\(value)'")
            }
            kind = .descriptor(number)
        default: kind = .socket(value)
        }
        if let text = options?["mac"] {
            guard let mac = MACAddress(text) else {
                throw Refusal(
                    .usage,
                    "--net: mac is six hexadecimal bytes such as 52:54:00:12:34:56 and not a group address, not '\(text)'"
                )
            }
            self.mac = mac
        }
    }

    package var argument: String {
        let base =
            switch kind {
            case .tap(let name): "tap=\(name)"
            case .descriptor(let number): "fd=\(number)"
            case .socket(let path): "socket=\(path)"
            case .unplugged: "none"
            }
        return mac.map { "\(base),mac=\($0)" } ?? base
    }
}

/// An Ethernet address of one card (no group address).
package struct MACAddress: Hashable, Sendable, CustomStringConvertible {
    package let bytes: [UInt8]

    package init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let bytes = parts.compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
        guard parts.count == 6, bytes.count == 6, bytes[0] & 1 == 0 else { return nil }
        self.bytes = bytes
    }

    /// QEMU's prefix and the card's number, as QEMU gives out.
    package init(card: Int) { bytes = [0x52, 0x54, 0x00, 0x12, 0x34, UInt8(truncatingIfNeeded: 0x56 + card)] }

    package var description: String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }
}

/// `--console`: where the guest's serial port goes.
package enum ConsoleConfiguration: Hashable, Sendable {
    case stdio
    /// A listening unix socket; several clients may attach. An empty path is `console.sock` in the run directory.
    case unix(String)
    case pty
    case file(String)
    case null

    /// `stdio|unix:PATH|pty|file:PATH|null`.
    package init(argument text: String) throws(Refusal) {
        switch text {
        case "stdio": self = .stdio
        case "pty": self = .pty
        case "null", "none": self = .null
        case "unix": self = .unix("")
        case _ where text.hasPrefix("unix:") && text.count > 5: self = .unix(String(text.dropFirst(5)))
        case _ where text.hasPrefix("file:") && text.count > 5: self = .file(String(text.dropFirst(5)))
        default:
            throw Refusal(
                .usage, "--console: 'stdio', 'unix', 'unix:PATH', 'pty', 'file:PATH' or 'null', not '\(text)'")
        }
    }

    package var argument: String {
        switch self {
        case .stdio: "stdio"
        case .unix(let path): path.isEmpty ? "unix" : "unix:\(path)"
        case .pty: "pty"
        case .file(let path): "file:\(path)"
        case .null: "null"
        }
    }
}

/// Where a server listens: `unix:PATH`, or `tcp:HOST:PORT` on this host only.
package enum ListenAddress: Hashable, Sendable {
    case unix(String)
    case tcp(host: String, port: UInt16)

    /// Options that QEMU's users write behind a comma (`server=on,wait=off`) say what is the case anyway.
    package init(argument text: String, flag: String = "--qmp") throws(Refusal) {
        let address = text.split(separator: ",", maxSplits: 1).first.map(String.init) ?? text
        for option in text.split(separator: ",").dropFirst()
        where !["server", "server=on", "nowait", "wait=off"].contains(option) {
            throw Refusal(.usage, "\(flag): unknown option '\(option)' in '\(text)'")
        }
        if address.hasPrefix("unix:"), address.count > 5 {
            self = .unix(String(address.dropFirst(5)))
            return
        }
        if address.hasPrefix("tcp:"), let colon = address.lastIndex(of: ":"),
            colon > address.index(address.startIndex, offsetBy: 3)
        {
            let host = address[address.index(address.startIndex, offsetBy: 4)..<colon]
            if let port = UInt16(address[address.index(after: colon)...]) {
                guard ["127.0.0.1", "localhost", "[::1]"].contains(host) else {
                    throw Refusal(
                        .usage,
                        "\(flag): '\(host)' is not on this host; QMP has no passwords, so only 127.0.0.1, localhost and [::1] are served"
                    )
                }
                self = .tcp(host: host == "[::1]" ? "::1" : String(host), port: port)
                return
            }
        }
        throw Refusal(.usage, "\(flag): 'unix:PATH' or 'tcp:HOST:PORT', not '\(text)'")
    }

    package var argument: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port): "tcp:\(host.contains(":") ? "[\(host)]" : host):\(port)"
        }
    }
}

/// Names of guests: they become directory names.
package enum GuestName {
    package static let characterCountMax = 64

    package static func validate(_ name: String) throws(Refusal) {
        let isFine =
            !name.isEmpty && name.utf8.count <= characterCountMax && !name.hasPrefix(".") && !name.hasPrefix("-")
            && name.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "."), UInt8(ascii: "-"),
                    UInt8(ascii: "@"), UInt8(ascii: "+"):
                    true
                default: false
                }
            }
        if !isFine {
            throw Refusal(
                .usage,
                "'\(name)' cannot be a guest's name: letters, digits and _.-@+, at most \(characterCountMax), no leading '.' or '-'"
            )
        }
    }
}
