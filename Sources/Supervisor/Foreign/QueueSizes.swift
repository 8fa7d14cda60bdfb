import MigrationEngine

/// Entries in the queues of a virtio device, as its section tells them.
///
/// QEMU 7.2 and 10.0 let a guest have 1024 in every queue; 11.1 offers what the device has, and refuses a state with more.
///
/// Source of the layout: 12 bytes of the transport; status, interrupt status, selected queue and features (8 bytes); length of the
/// configuration space and the space; the number of queues; for each its size, alignment, address and index (18 bytes).
struct QueueSizes {
    /// Largest of each device whose size nobody can choose, in 11.1.
    private static let fixed: [String: Int] = ["virtio-rng": 8, "virtio-console": 128]
    /// What a device has in 11.1 unless it is started with another size, and how that is done.
    private static let chosen: [String: (size: Int, option: String)] = [
        "virtio-blk": (256, "queue-size"), "virtio-net": (256, "rx_queue_size"),
    ]

    private let device: String
    private let largest: Int

    /// Of a machine of ours.
    init(device: String, largest: Int) {
        self.device = device
        self.largest = largest
    }

    /// Nil when the section is no virtio device's.
    init?(_ section: UnreadSection) {
        guard section.header.name.hasPrefix("virtio-mmio@"), let name = section.header.name.split(separator: "/").last
        else { return nil }
        device = String(name)
        let body = section.body
        func word(_ offset: Int) -> Int? {
            guard offset >= 0, offset <= body.count - 4 else { return nil }
            return body[offset..<(offset + 4)].reduce(0) { $0 << 8 | Int($1) }
        }
        guard let configurationByteCount = word(20), let count = word(24 + configurationByteCount), count <= 1024 else {
            largest = 0
            return
        }
        let start = 28 + configurationByteCount
        largest = (0..<count).compactMap { word(start + $0 * 18) }.max() ?? 0
    }

    /// Why QEMU 11.1 cannot take the device at all.
    var obstacle: String? {
        guard let most = Self.fixed[device], largest > most else { return nil }
        return
            "the guest's \(device) has a queue of \(largest) entries, as releases before 11 offer, and qemu-11.1 takes \(most) at most"
    }

    /// What the destination has to be started with.
    var hint: String? {
        guard let (size, option) = Self.chosen[device], largest > size else { return nil }
        return
            "the guest's \(device) has a queue of \(largest) entries: start the destination's with \(option)=\(largest)"
    }
}
