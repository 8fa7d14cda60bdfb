/// Which received frames the driver wants (virtio 1.2, section 5.1.6.5).
struct NetworkFilter: Sendable {
    static let tableMaximum = 64
    static let vlanByteCount = 4096 / 8

    var address: [UInt8]
    var isPromiscuous = true
    var allowsAllMulticast = false
    var allowsAllUnicast = false
    var refusesMulticast = false
    var refusesUnicast = false
    var refusesBroadcast = false
    /// At most ``tableMaximum`` together; what did not fit is told by the overflow marks.
    var unicast: [[UInt8]] = []
    var multicast: [[UInt8]] = []
    var hasUnicastOverflow = false
    var hasMulticastOverflow = false
    /// A bit per VLAN; all set while the driver does not filter.
    var vlans = [UInt8](repeating: 0xff, count: vlanByteCount)

    init(address: [UInt8]) { self.address = address }

    func accepts(_ frame: UnsafeRawBufferPointer) -> Bool {
        if isPromiscuous { return true }
        guard frame.count >= 14 else { return false }
        if unsafe frame[12] == 0x81, unsafe frame[13] == 0x00 {
            guard frame.count >= 16, contains(vlan: unsafe UInt16(frame[14]) << 8 | UInt16(frame[15])) else {
                return false
            }
        }
        let destination = unsafe Array(frame[0..<6])
        if destination[0] & 1 != 0 {
            if destination.allSatisfy({ $0 == 0xff }) { return !refusesBroadcast }
            if refusesMulticast { return false }
            return allowsAllMulticast || hasMulticastOverflow || multicast.contains(destination)
        }
        if refusesUnicast { return false }
        return allowsAllUnicast || hasUnicastOverflow || destination == address || unicast.contains(destination)
    }

    func contains(vlan: UInt16) -> Bool { vlans[Int(vlan & 0xfff) / 8] & 1 << (vlan & 7) != 0 }

    mutating func set(vlan: UInt16, _ isWanted: Bool) {
        let index = Int(vlan & 0xfff) / 8
        let bit: UInt8 = 1 << (vlan & 7)
        vlans[index] = isWanted ? vlans[index] | bit : vlans[index] & ~bit
    }

    /// Replaces the address table; lists that do not fit become "all of that kind".
    mutating func setTable(unicast: [[UInt8]], multicast: [[UInt8]]) {
        hasUnicastOverflow = unicast.count > Self.tableMaximum
        self.unicast = hasUnicastOverflow ? [] : unicast
        hasMulticastOverflow = self.unicast.count + multicast.count > Self.tableMaximum
        self.multicast = hasMulticastOverflow ? [] : multicast
    }
}
