import GuestMemory
import QMPProtocol

extension CommandTable {
    static let status: [CommandEntry] = [
        CommandEntry(
            "query-status",
            returns: .object("StatusInfo", [.required("running", .boolean), .required("status", QMPTypes.runState)])
        ) { supervisor, _ in
            ["running": .bool(supervisor.runState == .running), "status": .string(supervisor.runState.rawValue)]
        },
        CommandEntry("query-name", returns: .object("NameInfo", [.optional("name", .string)])) { supervisor, _ in
            ["name": .string(supervisor.name)]
        },
        CommandEntry("query-uuid", returns: .object("UuidInfo", [.required("UUID", .string)])) { supervisor, _ in
            ["UUID": .string(supervisor.configuration.uuid ?? "00000000-0000-0000-0000-000000000000")]
        },
        CommandEntry(
            "query-kvm",
            returns: .object("KvmInfo", [.required("enabled", .boolean), .required("present", .boolean)])
        ) { _, _ in ["enabled": false, "present": false] },
        CommandEntry(
            "query-target",
            returns: .object("TargetInfo", [.required("arch", .enumeration("SysEmuTarget", ["riscv64"]))])
        ) { _, _ in ["arch": "riscv64"] },
        CommandEntry(
            "query-cpus-fast",
            returns: .array(
                of: .object(
                    "CpuInfoFast",
                    [
                        .required("cpu-index", .integer), .required("qom-path", .string),
                        .required("thread-id", .integer), .optional("props", .object("CpuInstanceProperties", [])),
                        .required("target", .enumeration("SysEmuTarget", ["riscv64"])),
                    ]))
        ) { supervisor, _ in
            .array(
                supervisor.guest.processors.map { processor in
                    [
                        "cpu-index": JSONValue(processor.index),
                        "qom-path": .string("/machine/soc0/harts[\(processor.index)]"),
                        "thread-id": JSONValue(processor.threadIdentifier), "props": [:], "target": "riscv64",
                    ]
                })
        },
        CommandEntry(
            "query-memory-size-summary",
            returns: .object(
                "MemoryInfo", [.required("base-memory", .integer), .optional("plugged-memory", .integer)])
        ) { supervisor, _ in ["base-memory": JSONValue(supervisor.configuration.memory)] },
        CommandEntry("query-block", returns: .array(of: QMPTypes.blockInformation)) { supervisor, _ in
            .array(supervisor.configuration.disks.enumerated().map { QMPTypes.describe(disk: $1, index: $0) })
        },
        CommandEntry(
            "query-chardev",
            returns: .array(
                of: .object(
                    "ChardevInfo",
                    [.required("label", .string), .required("filename", .string), .required("frontend-open", .boolean)])
            )
        ) { supervisor, _ in
            var list: [JSONValue] = [
                [
                    "label": "serial0", "frontend-open": true,
                    "filename": .string(supervisor.consoleDescription),
                ]
            ]
            for (index, address) in supervisor.qmpAddresses.enumerated() {
                list.append([
                    "label": .string("compat_monitor\(index)"), "frontend-open": true,
                    "filename": .string("\(address.argument),server=on"),
                ])
            }
            return .array(list)
        },
    ]
}

extension QMPTypes {
    static let blockInformation = QMPType.object(
        "BlockInfo",
        [
            .required("device", .string), .optional("qdev", .string), .required("type", .string),
            .required("removable", .boolean), .required("locked", .boolean),
            .optional(
                "inserted",
                .object(
                    "BlockDeviceInfo",
                    [
                        .required("file", .string), .optional("node-name", .string), .required("ro", .boolean),
                        .required("drv", .string), .required("backing_file_depth", .integer),
                        .required("encrypted", .boolean),
                        .required(
                            "detect_zeroes", .enumeration("BlockdevDetectZeroesOptions", ["off", "on", "unmap"])),
                        .required("bps", .integer), .required("bps_rd", .integer), .required("bps_wr", .integer),
                        .required("iops", .integer), .required("iops_rd", .integer), .required("iops_wr", .integer),
                        .required(
                            "cache",
                            .object(
                                "BlockdevCacheInfo",
                                [
                                    .required("writeback", .boolean), .required("direct", .boolean),
                                    .required("no-flush", .boolean),
                                ])),
                        .required("write_threshold", .integer),
                        .required(
                            "image",
                            .object(
                                "ImageInfo",
                                [
                                    .required("filename", .string), .required("format", .string),
                                    .required("virtual-size", .integer),
                                ])),
                    ])),
        ])

    static func describe(disk: DiskConfiguration, index: Int) -> JSONValue {
        [
            "device": .string("disk\(index)"), "qdev": .string("/machine/peripheral-anon/device[\(index)]"),
            "type": "unknown", "removable": false, "locked": false,
            "inserted": [
                "file": .string(disk.path), "ro": .bool(disk.isReadOnly), "drv": "raw", "backing_file_depth": 0,
                "encrypted": false, "detect_zeroes": "off", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0,
                "iops_wr": 0, "cache": ["writeback": true, "direct": false, "no-flush": false], "write_threshold": 0,
                "image": [
                    "filename": .string(disk.path), "format": "raw",
                    "virtual-size": JSONValue(FileInformation.byteCount(of: disk.path) ?? 0),
                ],
            ],
        ]
    }
}
