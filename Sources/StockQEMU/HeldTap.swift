package import LinuxCalls

/// A tap of the guest, held while two processes are attached to it. A QEMU that starts sets the tap's frame header and offloads as
/// it likes them (`net/tap.c`: for all who are attached), and would cut the guest off that runs in the other one.
package struct HeldTap: Sendable {
    package var descriptor: OwnedDescriptor
    package var settings: TapSettings

    /// Puts the settings back where the header was changed.
    package func keep() {
        if (try? TapSettings.headerByteCount(of: descriptor)) != settings.headerByteCount { restore() }
    }

    /// Puts the settings back.
    package func restore() { try? settings.apply(to: descriptor) }
}
