import QMPProtocol

/// What `info` tells.
extension HumanMonitor {
    static var informationHelp: String { subjects.map { "info \($0.help)" }.joined() }

    static let subjects: [Word] = [
        Word(names: ["block"], summary: "disks") { supervisor, _, answer in
            answer(
                supervisor.configuration.disks.enumerated().map { index, disk in
                    "disk\(index) (#block\(index)): \(disk.path) (raw\(disk.isReadOnly ? ", read-only" : ""))\r\n"
                        + "    Attached to:      /machine/peripheral-anon/device[\(index)]\r\n"
                        + "    Cache mode:       writeback\r\n"
                }.joined(separator: "\r\n"))
        },
        query("chardev", "query-chardev", "the console and the monitors") { value in
            (value.arrayValue ?? []).map {
                "\($0["label"]?.stringValue ?? ""): filename=\($0["filename"]?.stringValue ?? "")\r\n"
            }.joined()
        },
        Word(names: ["cpus"], summary: "processors and their threads") { supervisor, _, answer in
            answer(
                supervisor.guest.processors.map {
                    "\($0.index == 0 ? "*" : " ") CPU #\($0.index): thread_id=\($0.threadIdentifier)\r\n"
                }.joined())
        },
        Word(names: ["kvm"], summary: "whether KVM is there") { _, _, answer in
            answer("kvm support: not compiled\r\n")
        },
        query("migrate", "query-migrate", "the latest migration") { migration($0) },
        query("migrate_capabilities", "query-migrate-capabilities", "what is switched on") { value in
            (value.arrayValue ?? []).map {
                "\($0["capability"]?.stringValue ?? ""): \($0["state"]?.boolValue == true ? "on" : "off")\r\n"
            }.joined()
        },
        query("migrate_parameters", "query-migrate-parameters", "numbers that steer a migration") { value in
            (value.objectValue?.members ?? []).map { parameter($0.key, $0.value) }.joined()
        },
        Word(names: ["name"], summary: "the guest's name") { supervisor, _, answer in
            answer("\(supervisor.name)\r\n")
        },
        Word(names: ["network"], summary: "network cards") { supervisor, _, answer in
            answer(
                supervisor.configuration.networks.enumerated().map { index, card in
                    let address = card.mac ?? MACAddress(card: index)
                    return "net\(index): index=0,type=nic,model=virtio-net-device,macaddr=\(address)\r\n"
                        + " \\ \(card.argument)\r\n"
                }.joined())
        },
        Word(names: ["registers"], summary: "the processors' registers") { supervisor, _, answer in
            supervisor.registerDump(answer)
        },
        Word(names: ["snapshots"], summary: "not there") { _, _, answer in
            answer("no block device can store vmstate for snapshot\r\n")
        },
        Word(names: ["status"], summary: "whether the guest runs") { supervisor, _, answer in
            let state = supervisor.runState
            answer(
                state == .running
                    ? "VM status: running\r\n"
                    : "VM status: paused\(state == .paused ? "" : " (\(state.rawValue))")\r\n")
        },
        Word(names: ["uuid"], summary: "the guest's UUID") { supervisor, _, answer in
            answer("\(supervisor.configuration.uuid ?? "00000000-0000-0000-0000-000000000000")\r\n")
        },
        Word(names: ["version"], summary: "what this is") { _, _, answer in
            let version = Product.qmpVersion
            answer("\(version.major).\(version.minor).\(version.micro)\(version.package)\r\n")
        },
    ]

    /// A subject that a QMP command knows.
    private static func query(
        _ name: String, _ command: String, _ summary: String, _ text: @escaping @Sendable (JSONValue) -> String
    ) -> Word {
        Word(names: [name], summary: summary) { supervisor, _, answer in
            supervisor.run(QMPCommand(name: command), client: nil) { result in
                switch result {
                case .success(let value): answer(text(value))
                case .failure(let error): answer(Self.text(of: error))
                }
            }
        }
    }

    private static let units = [
        "announce-initial": " ms", "announce-max": " ms", "announce-step": " ms", "downtime-limit": " ms",
        "x-checkpoint-delay": " ms", "x-vcpu-dirty-limit-period": " ms", "vcpu-dirty-limit": " MB/s",
        "max-bandwidth": " bytes/second", "avail-switchover-bandwidth": " bytes/second", "xbzrle-cache-size": " bytes",
    ]

    private static func parameter(_ name: String, _ value: JSONValue) -> String {
        let text: String
        switch value {
        case .bool(let isOn): text = isOn ? "on" : "off"
        case .string(let string): text = name.hasPrefix("tls-") ? "'\(string)'" : string
        default: text = value.json + (units[name] ?? "")
        }
        return "\(name): \(text)\r\n"
    }

    /// `info migrate` in the form that scripts search: one fact per line.
    private static func migration(_ value: JSONValue) -> String {
        var text = ""
        func add(_ label: String, _ value: JSONValue?, _ unit: String = "") {
            if let value { text += "\(label): \(value.stringValue ?? value.json)\(unit)\r\n" }
        }
        add(
            "Migration status",
            value["status"].map { status in
                value["error-desc"]?.stringValue.map { .string("\(status.stringValue ?? "") (\($0))") } ?? status
            })
        add("total time", value["total-time"], " ms")
        add("expected downtime", value["expected-downtime"], " ms")
        add("downtime", value["downtime"], " ms")
        add("setup", value["setup-time"], " ms")
        if let ram = value["ram"] {
            func kilobytes(_ key: String) -> JSONValue? { ram[key]?.unsignedValue.map { JSONValue($0 >> 10) } }
            add("transferred ram", kilobytes("transferred"), " kbytes")
            add("throughput", ram["mbps"], " mbps")
            add("remaining ram", kilobytes("remaining"), " kbytes")
            add("total ram", kilobytes("total"), " kbytes")
            add("duplicate", ram["duplicate"], " pages")
            add("normal", ram["normal"], " pages")
            add("normal bytes", kilobytes("normal-bytes"), " kbytes")
            add("dirty sync count", ram["dirty-sync-count"])
            add("page size", kilobytes("page-size"), " kbytes")
            add("multifd bytes", kilobytes("multifd-bytes"), " kbytes")
            add("pages-per-second", ram["pages-per-second"])
            add("dirty pages rate", ram["dirty-pages-rate"], " pages")
            add("precopy ram", kilobytes("precopy-bytes"), " kbytes")
            add("downtime ram", kilobytes("downtime-bytes"), " kbytes")
            add("postcopy ram", kilobytes("postcopy-bytes"), " kbytes")
        }
        return text
    }
}
