/// What a receiver puts up with. Everything a peer chooses the size of has an entry here or in the format itself.
package struct StreamLimits: Hashable, Sendable {
    /// Bytes of one device section's body. QEMU's largest on the machines spoken here is below 64 KiB.
    package var deviceSectionByteCount = 16 << 20
    /// Bytes of the JSON self-description; QEMU's is 10 to 100 KB.
    package var descriptionByteCount = 16 << 20
    /// Bytes of a PACKAGED run: device state only.
    package var packageByteCount = 64 << 20
    /// Different section ids in one stream.
    package var sectionCount = 4096
    /// Entries of the RAM block list.
    package var blockCount = 1024
    /// Bytes of the machine name.
    package var machineNameByteCount = 255
    /// Entries of the capability list.
    package var capabilityCount = 64
    /// Descriptors in a cpr stream.
    package var cprDescriptorCount = 1024

    package init() {}
}
