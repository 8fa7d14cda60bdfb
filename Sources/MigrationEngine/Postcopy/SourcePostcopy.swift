import GuestMemory
import MigrationStream

/// The source from the switch to postcopy on.
extension SourceDriver {
    /// PINGs around the switch, as a stock source numbers them. The one inside the package is answered when the
    /// destination has taken the state and not run the guest yet: with it the guest has left.
    private static let discardPing: UInt32 = 2, statePing: UInt32 = 3, packagePing: UInt32 = 4

    /// 512 KiB per piece, two on their way: what somebody waits for is behind no more than that.
    private static let postcopyPiecePages = 128
    private static let postcopyPiecesInFlight = 2

    /// Discards, then the device state as one package that runs the guest.
    func sendPackage() -> SourceMachine.Action {
        owner.report { $0.status = .device }
        let start = now()
        let package = StreamWriter()
        do throws(MigrationError) {
            try checkOrders()
            if configuration.writesSwitchoverStart { output.writer.writeCommand(.switchoverStart) }
            sender.writeDiscards(to: output.writer)
            output.writer.writeCommand(.ping(Self.discardPing))
            package.writeCommand(.postcopyListen)
            _ = try writeComponents(to: package)
            package.writeCommand(.ping(Self.statePing))
            package.writeCommand(.postcopyRun)
            try output.flush()
            try returnPath?.poll()
        } catch { return fail(error) }
        let saved = now()
        guard owner.orders.commit() else { return fail(MigrationError(.cancelled, in: phase, "cancelled")) }
        // From the first byte of the package on the destination may come to run the guest.
        let action = machine.handle(.packageSent)
        postcopy = PostcopyPieces(blocks: sender.blocks)
        output.phase = machine.phase
        do throws(MigrationError) {
            output.writer.writeCommand(.packaged(byteCount: UInt32(package.count)))
            unsafe package.withBytes { bytes in
                unsafe output.writer.write(RawSpan(_unsafeBytes: bytes))
            }
            output.writer.writeCommand(.ping(Self.packagePing))
            try output.flush()
        } catch { return failInPostcopy(error) }
        owner.report(notify: false) { progress in
            progress.timing.saveNanoseconds = saved - start
            progress.timing.sendNanoseconds = now() - saved
        }
        return action
    }

    /// Pages, those that are waited for first, until the destination has all of them.
    func streamPages() -> SourceMachine.Action {
        do throws(MigrationError) {
            guard let returnPath else {
                throw MigrationError(.invalidConfiguration, in: phase, "a postcopy needs return-path")
            }
            var limit = BandwidthLimit(
                bytesPerSecond: parameters.maxPostcopyBandwidthBytesPerSecond, nowNanoseconds: now())
            var readyAt: UInt64 = 0
            while true {
                if takeParameters() {
                    limit = BandwidthLimit(
                        bytesPerSecond: parameters.maxPostcopyBandwidthBytesPerSecond, nowNanoseconds: now())
                    readyAt = 0
                }
                output.phase = machine.phase
                try returnPath.poll(in: machine.phase)
                try takeAnswers(returnPath)
                let requests = takeRequests(returnPath)
                let isDone = sender.pendingPageCount == 0
                if isDone && requests.isEmpty && postcopy.unconfirmed.isEmpty && machine.state == .postcopy { break }
                let time = now()
                let hasRoom = !isDone && postcopy.unconfirmed.count < Self.postcopyPiecesInFlight && time >= readyAt
                guard hasRoom || !requests.isEmpty else {
                    let wait = time < readyAt ? Int(min((readyAt - time) / 1_000_000 + 1, 100)) : 100
                    try returnPath.wait(in: machine.phase, timeoutMilliseconds: wait)
                    continue
                }
                let before = byteCount
                let window = limit.windowByteCount
                let pages = window == 0 ? Self.postcopyPiecePages : Int(clamping: window / UInt64(guestPageSize))
                try sendPiece(requests, pages: hasRoom ? min(max(1, pages), Self.postcopyPiecePages) : 0)
                if hasRoom {
                    let wait = limit.sent(byteCount: byteCount - before, nowNanoseconds: now())
                    if wait > 0 { readyAt = now() + wait }
                }
                publish()
            }
            postcopy.isConfirmed = true
            output.writer.beginSection(SectionHeader(.end, id: ramSectionID, name: "ram", version: 4))
            sender.writeEndOfSection(to: output.writer)
            output.writer.endSection(id: ramSectionID)
            output.writer.writeEndOfStream()
            try output.flush()
        } catch { return failInPostcopy(error) }
        return machine.handle(.pagesSent)
    }

    /// Bytes sent, in the stream and beside it.
    private var byteCount: UInt64 { output.byteCount + (owner.hooks?.sideByteCount ?? 0) }

    private func sendPiece(
        _ requests: [(reference: BlockReference, pages: Range<Int>)], pages: Int
    ) throws(MigrationError) {
        let before = byteCount
        output.writer.beginSection(SectionHeader(.part, id: ramSectionID, name: "ram", version: 4))
        let runs = try sender.writePiece(to: output, requests: requests, pages: pages)
        output.writer.endSection(id: ramSectionID)
        output.writer.writeCommand(.ping(nextPing()))
        try output.flush()
        postcopy.unconfirmed.append((lastPing, runs))
        let sent = byteCount - before
        owner.report(notify: false) { $0.ram.postcopyByteCount += sent }
    }

    /// What the destination has said since the last time: that it took the state, and what it has.
    private func takeAnswers(_ returnPath: ReturnPathReader) throws(MigrationError) {
        if machine.state == .postcopyDevice, returnPath.takePong(Self.statePing) {
            noteTaken()
            if configuration.has(.releaseRAM) {
                try giveAway(sender.runsSentBefore(postcopy.unconfirmed.flatMap(\.runs)))
            }
        }
        // Nothing is given away before the guest has left.
        while machine.state == .postcopy, let oldest = postcopy.unconfirmed.first, returnPath.takePong(oldest.ping) {
            postcopy.unconfirmed.removeFirst()
            try giveAway(oldest.runs)
        }
        if let status = returnPath.shutStatus {
            if status != 0 {
                throw MigrationError(
                    .peerRefused, in: phase, "the destination reports that it failed (\(status))")
            }
            throw MigrationError(.streamMalformed, in: phase, "the destination says it is done, and it is not")
        }
    }

    private func noteTaken() {
        _ = machine.handle(.stateTaken)
        let downtime = pausedAt.map { now() - $0 }
        owner.report { progress in
            progress.status = .postcopyActive
            progress.hasLeft = true
            progress.timing.downtimeNanoseconds = downtime
        }
    }

    private func takeRequests(_ returnPath: ReturnPathReader) -> [(reference: BlockReference, pages: Range<Int>)] {
        let requests = returnPath.takeRequests()
        guard !requests.isEmpty else { return [] }
        owner.report(notify: false) { $0.ram.postcopyRequests += UInt64(requests.count) }
        return requests.compactMap { request in
            sender.reference(of: request.block).map { ($0, request.pages) }
        }
    }

    /// The destination has these: with `release-ram`, or over a channel that gives pages away, they are freed here.
    private func giveAway(_ runs: [PageRun]) throws(MigrationError) {
        let gives = owner.hooks?.disposition == .givesAway
        guard gives || configuration.has(.releaseRAM) else { return }
        for run in runs { postcopy.givenAway[run.reference.index].insert(run.pages) }
        if gives, !postcopy.isRecovered { return try owner.hooks!.destinationHas(runs) }
        for run in runs {
            do { try run.block.free(offset: run.offset, byteCount: run.byteCount) } catch {
                throw MigrationError(
                    .guestFailed, in: .postcopy, "memory of \(run.block.name) cannot be freed", cause: error)
            }
        }
    }

    /// A failure once the package is on its way. Who has the guest is what the destination said last.
    func failInPostcopy(_ error: MigrationError) -> SourceMachine.Action {
        if machine.state == .postcopyDevice, let returnPath {
            let status = returnPath.lastWord()
            if returnPath.takePong(Self.statePing) {
                noteTaken()
            } else if status.map({ $0 != 0 }) ?? (returnPath.hasEnded && output.transport.deliversBeforeEnd) {
                // It refused; or it is gone, everything it ever said is here, and that it took the state is not among it.
                let why =
                    status == nil
                    ? "the destination ended before it took the guest"
                    : "the destination reports that it failed (\(status!))"
                return fail(MigrationError(.peerRefused, in: .switchover, why, cause: error))
            }
        }
        var error = error
        // Whoever broke the channel off here meant the channel.
        if error.code == .cancelled {
            error = MigrationError(.channelClosed, in: .postcopy, "the channel was broken off here")
        }
        return fail(error)
    }

    // MARK: Recovery

    /// Waits for a channel that is not broken, or for somebody who gives up.
    func waitForRecovery() -> SourceMachine.Action {
        output.transport.close()
        if postcopy.isConfirmed {
            failure?.message += "; the destination has the guest and all of its memory, and waits to be told so"
        }
        let reason = failure
        owner.report { progress in
            progress.status = .postcopyPaused
            progress.hasLeft = true
            progress.error = reason
        }
        guard let fresh = owner.orders.awaitRecovery() else {
            return machine.handle(postcopy.isConfirmed ? .nothingMissing : .cancelRequested)
        }
        failure = nil
        fresh.setStallLimit(milliseconds: configuration.parameters.stallLimitMilliseconds)
        output = StreamOutput(transport: fresh, continuing: output)
        let reader = ReturnPathReader(transport: fresh)
        reader.pageCounts = sender.pageCounts
        returnPath = reader
        return machine.handle(.recoveryBegun)
    }

    /// Asks what the destination has, and goes on with the rest.
    func recover() -> SourceMachine.Action {
        owner.report { $0.status = .postcopyRecover }
        output.phase = .postcopy
        do throws(MigrationError) {
            guard let returnPath, output.transport.hasReturnPath else {
                throw MigrationError(
                    .invalidConfiguration, in: .postcopy, "\(output.transport.name) has no way back to recover over")
            }
            for block in sender.sentBlocks { output.writer.writeCommand(.receivedBitmap(block: block.name)) }
            try output.flush()
            while returnPath.bitmaps.count < sender.sentBlocks.count { try returnPath.wait(in: .postcopy) }
            try sender.restore(received: returnPath.bitmaps, givenAway: postcopy.givenAway)
            // Pages go through the stream from now on: a pipe beside it went with the old channel.
            sender.leaveHooks()
            postcopy.unconfirmed = []
            postcopy.isRecovered = true
            // What was on its way and came: there is no answer to wait for any more.
            try giveAway(sender.runsSentBefore([]))
            output.writer.writeCommand(.postcopyResume)
            try output.flush()
            while returnPath.resumeAcknowledged == nil { try returnPath.wait(in: .postcopy) }
            guard returnPath.resumeAcknowledged == 1 else {
                throw MigrationError(.peerRefused, in: .postcopy, "the destination does not resume")
            }
        } catch {
            if error.code == .ramMismatch {
                failure = error
                return machine.handle(.destinationRefused)
            }
            return failInPostcopy(error)
        }
        owner.report { progress in
            progress.status = .postcopyActive
            progress.error = nil
        }
        return machine.handle(.recovered)
    }
}

/// What a postcopy has on its way, and what it gave away.
struct PostcopyPieces {
    var unconfirmed: [(ping: UInt32, runs: [PageRun])] = []
    var givenAway: [PageSet]
    var isRecovered = false
    /// The destination has said that it has the guest and every page. That stays so, whatever becomes of the channel.
    var isConfirmed = false

    init(blocks: [RAMBlock]) { givenAway = blocks.map { PageSet(pageCount: $0.pageCount) } }
}
