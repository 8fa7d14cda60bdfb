/// What other threads want of the one that drives a migration, at either end.
struct MigrationOrders: Sendable {
    fileprivate(set) var isCancelled = false
    /// There is nothing to give up any more: a peer alone decides now, or the guest runs here, or is about to.
    var isCommitted = false
    /// A channel to go on over after a postcopy's own was lost.
    fileprivate(set) var recovery: (any MigrationTransport)?
    /// Nobody will recover a postcopy whose channel is lost: it ends, whatever is still missing.
    var isAbandoned = false
    fileprivate(set) var transport: any MigrationTransport
    // To a source alone.
    var continues = false
    var wantsPostcopy = false
    /// Limits that were changed since the driver last looked.
    var parameters: MigrationParameters?

    init(transport: any MigrationTransport) { self.transport = transport }
}

extension Gate where Value == MigrationOrders {
    /// Gives up, unless it is too late. Takes effect at once, also in the middle of a system call.
    func cancel() {
        update { orders in
            guard !orders.isCommitted else { return }
            orders.isCancelled = true
            orders.transport.interrupt()
        }
    }

    /// Makes it too late to cancel; false when somebody has.
    func commit() -> Bool {
        update { orders in
            if !orders.isCancelled { orders.isCommitted = true }
            return !orders.isCancelled
        }
    }

    /// Goes on over another channel, when a postcopy's own is lost.
    func recover(over transport: any MigrationTransport) { update { $0.recovery = transport } }

    /// Waits for a channel to go on over, and makes it the current one; nil when nobody will bring one.
    func awaitRecovery() -> (any MigrationTransport)? {
        wait { $0.recovery != nil || $0.isAbandoned }
        return update { orders in
            guard !orders.isAbandoned, let transport = orders.recovery else { return nil }
            orders.recovery = nil
            orders.transport = transport
            return transport
        }
    }
}
