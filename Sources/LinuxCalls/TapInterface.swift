import CLinuxShims
import Glibc
import SystemPackage

/// `struct ifreq` for the tun driver: a name and flags. Source: netdevice(7), the kernel's `tuntap.rst`.
package struct InterfaceRequest: Sendable {
    /// IFNAMSIZ: room for a name and its zero byte.
    package static let nameByteCount = 16
    private static let byteCount = 40

    package static let tap = Int16(SHIM_IFF_TAP)
    package static let noPacketInformation = Int16(SHIM_IFF_NO_PI)
    package static let virtioHeader = Int16(SHIM_IFF_VNET_HDR)

    private var bytes = [UInt8](repeating: 0, count: byteCount)

    package init(name: String, flags: Int16) {
        let name = Array(name.utf8.prefix(Self.nameByteCount - 1))
        bytes.replaceSubrange(0..<name.count, with: name)
        bytes[Self.nameByteCount] = UInt8(truncatingIfNeeded: flags)
        bytes[Self.nameByteCount + 1] = UInt8(truncatingIfNeeded: flags >> 8)
    }

    /// What an open tun descriptor is attached to. The corresponding request is `TUNGETIFF`.
    package init(of descriptor: OwnedDescriptor) throws(SystemCallError) {
        _ = try retrying("ioctl(TUNGETIFF)") {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_tungetiff(), &bytes)
        }
    }

    package var name: String {
        String(decoding: bytes[..<Self.nameByteCount].prefix { $0 != 0 }, as: UTF8.self)
    }

    package var flags: Int16 {
        Int16(bytes[Self.nameByteCount]) | Int16(bitPattern: UInt16(bytes[Self.nameByteCount + 1]) << 8)
    }

    /// Attaches a descriptor of `/dev/net/tun` to the interface. The corresponding request is `TUNSETIFF`.
    package mutating func attach(_ descriptor: OwnedDescriptor) throws(SystemCallError) {
        let subject = name
        _ = try retrying("ioctl(TUNSETIFF)", subject: subject) {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_tunsetiff(), &bytes)
        }
    }

    /// Frames carry a virtio header of `byteCount` bytes and no offloads. Requests `TUNSETVNETHDRSZ`, `TUNSETOFFLOAD`.
    package static func useSmallHeader(_ descriptor: OwnedDescriptor, byteCount: Int) throws(SystemCallError) {
        var size = CInt(byteCount)
        _ = try retrying("ioctl(TUNSETVNETHDRSZ)") {
            unsafe shim_ioctl_pointer(descriptor.rawValue, shim_tunsetvnethdrsz(), &size)
        }
        _ = try retrying("ioctl(TUNSETOFFLOAD)") { shim_ioctl_int(descriptor.rawValue, shim_tunsetoffload(), 0) }
    }
}

/// What is set on a tap for all who are attached to it: the length of the header before each frame, and what the guest computes
/// itself. Whoever attaches another descriptor of it to a device sets both anew.
package struct TapSettings: Hashable, Sendable {
    /// Bytes of the virtio header before each frame.
    package var headerByteCount: CInt
    /// TUN_F_* flags; nil where they could not be told.
    package var offloads: CInt?

    package init(headerByteCount: CInt, offloads: CInt?) {
        self.headerByteCount = headerByteCount
        self.offloads = offloads
    }

    /// Reads them. The corresponding requests are `TUNGETVNETHDRSZ` and, of the interface, `ETHTOOL_GTXCSUM` and `ETHTOOL_GTSO`.
    /// - Parameter socket: Any socket of the interface's network namespace.
    package init(of tap: OwnedDescriptor, socket: OwnedDescriptor?) throws(SystemCallError) {
        headerByteCount = try Self.headerByteCount(of: tap)
        let name = try InterfaceRequest(of: tap).name
        offloads = socket.flatMap { socket in
            let flags = unsafe shim_tap_offloads(socket.rawValue, name)
            return flags < 0 ? nil : flags
        }
    }

    /// The length of the header as it is now.
    package static func headerByteCount(of tap: OwnedDescriptor) throws(SystemCallError) -> CInt {
        var size: CInt = 0
        _ = try retrying("ioctl(TUNGETVNETHDRSZ)") {
            unsafe shim_ioctl_pointer(tap.rawValue, shim_tungetvnethdrsz(), &size)
        }
        return size
    }

    /// Sets them as they were. The corresponding requests are `TUNSETVNETHDRSZ` and `TUNSETOFFLOAD`.
    package func apply(to tap: OwnedDescriptor) throws(SystemCallError) {
        var size = headerByteCount
        _ = try retrying("ioctl(TUNSETVNETHDRSZ)") {
            unsafe shim_ioctl_pointer(tap.rawValue, shim_tunsetvnethdrsz(), &size)
        }
        guard let offloads else { return }
        _ = try retrying("ioctl(TUNSETOFFLOAD)") {
            shim_ioctl_int(tap.rawValue, shim_tunsetoffload(), UInt(offloads))
        }
    }
}
