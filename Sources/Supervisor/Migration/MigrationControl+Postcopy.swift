import LinuxCalls
import MigrationChannels
import MigrationEngine
import QMPProtocol

/// The commands of a postcopy: the switch, the channel that is broken off, and the one it goes on over.
extension MigrationControl {
    private static let postcopyStatuses: Set<MigrationStatus> = [
        .postcopyDevice, .postcopyActive, .postcopyPaused, .postcopyRecover,
    ]

    /// What the migration that runs is at, on either side.
    private var activeStatus: MigrationStatus {
        guard isActive else { return .none }
        return (source?.progress ?? destination?.progress)?.status ?? report?.progress.status ?? .none
    }

    /// `migrate-start-postcopy`.
    func startPostcopy() throws(QMPError) {
        precondition(loop.isLoopThread)
        guard settings.capabilities.contains(.postcopyRAM) else {
            throw QMPError("Enable postcopy with migrate_set_capability before the start of migration")
        }
        guard isActive, report?.side == .source else {
            throw QMPError("Postcopy must be started after migration has been started")
        }
        wantsPostcopy = true
        source?.startPostcopy()
    }

    /// A guest that runs at the destination cannot be had back.
    func refuseCancelInPostcopy() throws(QMPError) {
        guard Self.postcopyStatuses.contains(activeStatus) || source?.progress.hasLeft == true else { return }
        throw QMPError(
            "Postcopy migration in progress, cannot cancel: the guest runs at the destination already, and needs the rest "
                + "of its memory from here")
    }

    /// `migrate-pause`: breaks the channel off.
    func pauseChannel() throws(QMPError) {
        precondition(loop.isLoopThread)
        guard [.postcopyActive, .postcopyRecover].contains(activeStatus) else {
            throw QMPError("migrate-pause is currently only supported during postcopy-active or postcopy-recover state")
        }
        source?.breakChannel()
        destination?.breakChannel()
    }

    /// `migrate-recover`: waits for the source on a new channel.
    func recover(from address: MigrationAddress) throws(QMPError) {
        precondition(loop.isLoopThread)
        guard activeStatus == .postcopyPaused, let destination else {
            throw QMPError("Migrate recover can only be run when postcopy is paused.")
        }
        closeListener()
        do throws(SystemCallError) {
            if let (descriptor, actual) = try MigrationOpening.listen(address) {
                try descriptor.setNonBlocking(true)
                let token = try loop.watch(descriptor, for: .readable) { [weak self] _ in
                    guard let self, let listener = self.listener,
                        let socket = try? StreamSocket.accept(from: listener.descriptor),
                        let transport = try? DescriptorTransport(name: actual.description, socket: socket)
                    else { return }
                    self.closeListener()
                    destination.recover(over: transport)
                }
                var path: String?
                if case .unix(let text) = actual, !text.hasPrefix("@") { path = text }
                listener = (descriptor, token, path)
                report?.socketAddress = actual.socketAddress
                return
            }
        } catch { throw QMPError("cannot listen at \(address): \(error)") }
        guard case .descriptor = address else {
            throw QMPError("\(address) has no way back; recover over unix:, tcp: or fd:")
        }
        let descriptor = try descriptor(for: address)
        do throws(SystemCallError) {
            guard let opened = try MigrationOpening.incoming(address, descriptor: descriptor) else { return }
            destination.recover(over: opened.transport)
        } catch { throw QMPError("cannot open \(address): \(error)") }
    }

    /// `migrate` with `resume`: goes on over a new channel, at which the destination waits.
    func resume(over address: MigrationAddress) throws(QMPError) {
        precondition(loop.isLoopThread)
        guard activeStatus == .postcopyPaused, let source else {
            throw QMPError("Cannot resume if there is no paused migration")
        }
        let descriptor = try descriptor(for: address)
        // Connecting may take its time.
        do throws(SystemCallError) {
            _ = try HostThread(name: "resume") {
                do throws(SystemCallError) {
                    source.recover(over: try MigrationOpening.outgoing(address, descriptor: descriptor).transport)
                } catch {
                    source.recoveryFailed("cannot connect to \(address): \(error)")
                }
            }
        } catch { throw QMPError("\(error)") }
    }
}
