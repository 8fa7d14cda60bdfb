import GuestMemory
import MigrationStream

/// The destination from PACKAGED on: the state is loaded and the guest run on a thread of its own, while this one takes
/// pages; a lost channel is waited for, not the end.
extension DestinationDriver {
    /// POSTCOPY_ADVISE: whether this host can, before the first page comes.
    func preparePostcopy() throws(MigrationError) {
        guard let output else {
            throw MigrationError(.streamMalformed, in: machine.phase, "POSTCOPY_ADVISE without a return path")
        }
        do {
            missing = try MissingPages(blocks: receiver.blocks, opener: owner.faults)
        } catch {
            throw MigrationError(
                .invalidConfiguration, in: .setup,
                "postcopy needs userfaultfd, which this host or sandbox refuses; migrate without postcopy-ram, or allow "
                    + "userfaultfd with UFFD_USER_MODE_ONLY", cause: error)
        }
        receiver.trackReceived()
        returnPath = ReturnPathWriter(output)
    }

    /// POSTCOPY_RAM_DISCARD.
    func discard(_ block: String, _ ranges: [StreamCommand.DiscardedRange]) throws(MigrationError) {
        let page = UInt64(guestPageSize)
        for range in ranges {
            guard range.offset % page == 0, range.byteCount % page == 0,
                receiver.discard(block, Int(clamping: range.offset / page), Int(clamping: range.byteCount / page))
            else {
                throw MigrationError(
                    .streamMalformed, in: machine.phase,
                    "pages to be discarded that are not there: \(block) \(range.offset) and \(range.byteCount) bytes")
            }
        }
    }

    /// PACKAGED, up to the end of the postcopy.
    func receivePostcopy(packageByteCount: UInt32) throws(MigrationError) {
        guard let missing, let returnPath else {
            throw MigrationError(.streamMalformed, in: machine.phase, "PACKAGED without POSTCOPY_ADVISE")
        }
        try receiver.requireStarted()
        var package = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
            try reader.readPackage(&cursor, byteCount: packageByteCount)
        }
        var packageReader = reader
        do throws(StreamError) {
            guard try packageReader.next(&package) == .command(.postcopyListen) else {
                throw StreamError(.unexpectedRecord("a package without POSTCOPY_LISTEN"), at: package.offset)
            }
        } catch { throw StreamInput.migrationError(error, in: machine.phase, true) }
        try advance(.postcopyListen, "POSTCOPY_LISTEN")
        let memory = PostcopyMemory(
            missing, received: receiver.received, pageCounts: receiver.listedPageCounts, writer: returnPath)
        try memory.listen()
        let loader = PackageLoader(
            owner, register: register, globalState: globalState, reader: packageReader, package: package,
            writer: returnPath)
        do throws(MigrationError) { try loader.start() } catch {
            memory.giveUp()
            throw error
        }
        let pages = PostcopyReceiver(
            memory, decoder: receiver.decoder, progress: receiver.progress, hooks: owner.hooks)
        postcopy = (memory, pages)
        owner.report { $0.status = .postcopyActive }
        try receivePages(memory, pages, loader, returnPath)
    }

    private func receivePages(
        _ memory: PostcopyMemory, _ pages: PostcopyReceiver, _ loader: PackageLoader, _ returnPath: ReturnPathWriter
    ) throws(MigrationError) {
        while true {
            do throws(MigrationError) {
                try takeRecords(memory, pages, returnPath)
                // All is here, so whatever the loader still needs it has.
                loader.state.wait { $0 == .running || $0 == .failed }
                if loader.state.read({ $0 == .failed }) {
                    throw MigrationError(.guestFailed, in: .postcopy, "the state was not taken")
                }
                try noteRun(loader)
                try advance(.endOfStream, "the end")
                return complete(memory, loader, returnPath)
            } catch {
                if try decide(error, memory, loader) == .complete { return complete(memory, loader, returnPath) }
            }
            pages.channelLost()
            if try awaitRecovery(memory, loader, returnPath) == .complete {
                return complete(memory, loader, returnPath)
            }
        }
    }

    /// The guest is here with all of its memory.
    private func complete(_ memory: PostcopyMemory, _ loader: PackageLoader, _ returnPath: ReturnPathWriter) {
        loader.join()
        memory.finish()
        try? returnPath.send(.shut(status: 0), in: .postcopy)
        loadNanoseconds += loader.loadNanoseconds
        failure = nil
        owner.report(notify: false) { progress in
            progress.notices += loader.notices
            progress.timing.resumeNanoseconds = loader.resumeNanoseconds
        }
    }

    /// Nobody will recover the channel: the end, good or bad.
    private func giveUp(
        _ memory: PostcopyMemory, _ loader: PackageLoader, cause: MigrationError?
    ) throws(MigrationError) -> DestinationMachine.Action {
        let isWhole = memory.missingPageCount == 0
        // It lacks nothing, so it comes to its end.
        if isWhole { loader.state.wait { $0 == .running || $0 == .failed } }
        if isWhole, loader.state.read({ $0 == .running }) {
            if let cause {
                owner.report(notify: false) {
                    $0.notices.append(
                        "the guest has all of its memory; the source did not say that it is done: \(cause)")
                }
            }
            return machine.handle(.nothingMissing)
        }
        memory.abandon()
        throw MigrationError(.cancelled, in: .postcopy, "given up before all pages were here", cause: cause)
    }

    /// After a failure: returns when the guest is here all the same, and throws when it is not.
    private func decide(
        _ error: MigrationError, _ memory: PostcopyMemory, _ loader: PackageLoader
    ) throws(MigrationError) -> DestinationMachine.Action {
        memory.channelLost()
        loader.state.update { if $0 == .loading { $0 = .abandoned } }
        // Sending a few bytes ends, one way or the other.
        loader.state.wait { $0 != .answering }
        switch loader.state.read({ $0 }) {
        case .taken, .running:
            try noteRun(loader)
            if owner.orders.read({ $0.isAbandoned }) { return try giveUp(memory, loader, cause: error) }
            failure = error
            return machine.handle(error.code == .guestFailed ? .failed : .channelLost)
        default:
            // Whoever waits for a page goes on, finds nothing, and is not run.
            memory.giveUp()
            loader.join()
            throw loader.error.map { $0.code == .channelClosed ? error : $0 } ?? error
        }
    }

    private func noteRun(_ loader: PackageLoader) throws(MigrationError) {
        guard machine.state == .listening else { return }
        try advance(.postcopyRun, "POSTCOPY_RUN")
    }

    /// Records of the main channel, up to the end of the stream.
    private func takeRecords(
        _ memory: PostcopyMemory, _ pages: PostcopyReceiver, _ returnPath: ReturnPathWriter
    ) throws(MigrationError) {
        while true {
            input.phase = .postcopy
            let record = try input.decode { (cursor: inout StreamCursor) throws(StreamError) in
                try reader.next(&cursor)
            }
            switch record {
            case .section(let header):
                guard header.name == "ram", header.instance == 0 else {
                    throw refusedInPostcopy("section \(header.name)")
                }
                try advance(.ramSection, "section ram")
                try pages.receiveSection(header, from: input)
                try input.decode { (cursor: inout StreamCursor) throws(StreamError) in try reader.endSection(&cursor) }
                publishPostcopy(memory, pages)
            case .command(.ping(let value)): try returnPath.send(.pong(value), in: .postcopy)
            case .command(.receivedBitmap(let name)):
                guard machine.state == .postcopyRecovering, let block = memory.index(of: name) else {
                    throw refusedInPostcopy("a request for the received pages of \(name)")
                }
                try returnPath.send(
                    .receivedBitmap(block: name), bitmap: memory.bitmap(of: block), in: .postcopy)
            case .command(.postcopyResume):
                guard machine.handle(.recovered) == .proceed else { throw refusedInPostcopy("POSTCOPY_RESUME") }
                try returnPath.send(.resumeAcknowledged(1), in: .postcopy)
                failure = nil
                owner.report { progress in
                    progress.status = .postcopyActive
                    progress.error = nil
                }
                try memory.channelIsBack()
            case .endOfStream:
                guard pages.hasEnded else { throw refusedInPostcopy("the end of the stream") }
                let missing = memory.missingPageCount
                guard missing == 0 else {
                    throw MigrationError(
                        .ramMismatch, in: .postcopy, "the source says that it is done, and \(missing) pages are missing"
                    )
                }
                return
            default: throw refusedInPostcopy("a record")
            }
        }
    }

    private func refusedInPostcopy(_ what: String) -> MigrationError {
        MigrationError(.streamMalformed, in: .postcopy, "\(what) may not come here")
    }

    private func publishPostcopy(_ memory: PostcopyMemory, _ pages: PostcopyReceiver) {
        owner.report(notify: false) { progress in
            progress.ram = pages.progress
            progress.ram.transferredByteCount = input.receivedByteCount
            progress.ram.postcopyRequests = memory.requestCount
            progress.ram.remainingByteCount = UInt64(memory.missingPageCount) * UInt64(guestPageSize)
        }
    }

    // MARK: Recovery

    /// Waits for a channel that is not broken.
    private func awaitRecovery(
        _ memory: PostcopyMemory, _ loader: PackageLoader, _ returnPath: ReturnPathWriter
    ) throws(MigrationError) -> DestinationMachine.Action {
        input.transport.close()
        let missing = memory.missingPageCount
        if missing == 0 { failure?.message += "; the guest has all of its memory already" }
        let reason = failure
        owner.report { progress in
            progress.status = .postcopyPaused
            progress.error = reason
            progress.ram.remainingByteCount = UInt64(missing) * UInt64(guestPageSize)
        }
        guard let fresh = owner.orders.awaitRecovery() else { return try giveUp(memory, loader, cause: reason) }
        let action = machine.handle(.recoveryBegun)
        owner.report { $0.status = .postcopyRecover }
        fresh.setStallLimit(milliseconds: configuration.parameters.stallLimitMilliseconds)
        input = StreamInput(transport: fresh)
        let output = StreamOutput(transport: fresh)
        self.output = output
        returnPath.replace(output)
        reader.resume()
        return action
    }
}
