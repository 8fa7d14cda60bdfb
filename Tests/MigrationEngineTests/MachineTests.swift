import MigrationEngine
import Testing

@Suite("The source's states") struct SourceMachineTests {
    typealias Machine = SourceMachine

    /// Every state with the events that lead there.
    static func reached() -> [(name: String, machine: Machine)] {
        func made(
            _ events: [Machine.Event], options: Machine.Options = Machine.Options()
        ) -> Machine {
            var machine = Machine(options: options)
            for event in events { _ = machine.handle(event) }
            return machine
        }
        var stopping = Machine.Options()
        stopping.stopsFirst = true
        var waiting = Machine.Options()
        waiting.pausesBeforeSwitchover = true
        let converged: [Machine.Event] = [.ready, .roundEnded(.switchOver)]
        let postcopy: [Machine.Event] = [
            .postcopyRequested, .ready, .roundEnded(.iterate(throttlePercent: 0)), .paused,
        ]
        return [
            ("setup", made([])),
            ("first round", made([.ready])),
            ("second round", made([.ready, .roundEnded(.iterate(throttlePercent: 20))])),
            ("pausing", made(converged)),
            ("pausing at once", made([.ready], options: stopping)),
            ("pre-switchover", made(converged + [.paused], options: waiting)),
            ("switchover", made(converged + [.paused])),
            ("switchover after waiting", made(converged + [.paused, .continued], options: waiting)),
            ("packaging", made(postcopy)),
            ("committed", made(converged + [.paused, .stateSent])),
            ("package on its way", made(postcopy + [.packageSent])),
            ("postcopy", made(postcopy + [.packageSent, .stateTaken])),
            ("settling", made(postcopy + [.packageSent, .stateTaken, .pagesSent])),
            ("postcopy paused", made(postcopy + [.packageSent, .stateTaken, .channelLost])),
            ("postcopy recovering", made(postcopy + [.packageSent, .stateTaken, .channelLost, .recoveryBegun])),
        ]
    }

    @Test("before the point of no return every failure leaves the guest here, whatever fails")
    func failuresBefore() {
        for (name, machine) in Self.reached() where machine.isBeforePointOfNoReturn {
            for event in [
                Machine.Event.failed, .channelLost, .cancelRequested, .destinationRefused, .destinationRuns,
            ] {
                var copy = machine
                #expect(copy.handle(event) == .giveBackGuest, "\(name), \(event)")
                #expect(copy.state == .finished(.guestStayed))
            }
        }
    }

    @Test("once everything was sent only the destination's word brings the guest back")
    func committed() {
        let machine = Self.reached().first { $0.name == "committed" }!.machine
        var copy = machine
        #expect(copy.handle(.cancelRequested) == .ignore && copy.state == .committed)
        #expect(copy.handle(.destinationRefused) == .giveBackGuest)
        for event in [Machine.Event.channelLost, .failed] {
            copy = machine
            #expect(copy.handle(event) == .holdGuest && copy.state == .finished(.undecided))
        }
        copy = machine
        #expect(copy.handle(.destinationRuns) == .releaseGuest && copy.state == .finished(.guestMoved))
    }

    @Test("in postcopy the guest never comes back")
    func postcopy() {
        for (name, machine) in Self.reached() where machine.phase == .postcopy {
            for event in [
                Machine.Event.failed, .channelLost, .cancelRequested, .destinationRefused, .destinationRuns,
            ] {
                var copy = machine
                let action = copy.handle(event)
                #expect(action != .giveBackGuest, "\(name), \(event)")
                #expect(copy.state != .finished(.guestStayed))
            }
        }
        var machine = Self.reached().first { $0.name == "postcopy" }!.machine
        #expect(machine.handle(.channelLost) == .waitForRecovery)
        #expect(machine.handle(.recoveryBegun) == .recover)
        #expect(machine.handle(.channelLost) == .waitForRecovery)
        #expect(machine.handle(.recoveryBegun) == .recover)
        #expect(machine.handle(.recovered) == .streamPages)
        #expect(machine.handle(.pagesSent) == .awaitVerdict)
        #expect(machine.handle(.destinationRuns) == .releaseGuest)
    }

    @Test("while the package is on its way only the destination's refusal brings the guest back")
    func packageOnItsWay() {
        let machine = Self.reached().first { $0.name == "package on its way" }!.machine
        #expect(!machine.isBeforePointOfNoReturn && machine.phase == .switchover)
        var copy = machine
        #expect(copy.handle(.destinationRefused) == .giveBackGuest && copy.state == .finished(.guestStayed))
        for event in [Machine.Event.channelLost, .failed, .destinationRuns] {
            copy = machine
            #expect(copy.handle(event) == .waitForRecovery && copy.state == .postcopyPaused, "\(event)")
        }
        for event in [Machine.Event.cancelRequested, .continued] {
            copy = machine
            #expect(copy.handle(event) == .ignore && copy == machine)
        }
        #expect(copy.handle(.stateTaken) == .streamPages && copy.state == .postcopy)
    }

    @Test("a postcopy that nobody recovers ends with the guest held, and only then does a cancel count")
    func cancelInPostcopy() {
        for (name, machine) in Self.reached() where machine.phase == .postcopy {
            var copy = machine
            let action = copy.handle(.cancelRequested)
            if machine.state == .postcopyPaused {
                #expect(action == .holdGuest && copy.state == .finished(.undecided))
            } else {
                #expect(action == .ignore && copy == machine, "\(name)")
            }
        }
    }

    @Test("when the destination has every page, a lost channel is the end and not a wait")
    func nothingMissing() {
        let settling = Self.reached().first { $0.name == "settling" }!.machine
        for event in [Machine.Event.channelLost, .destinationRuns] {
            var copy = settling
            #expect(copy.handle(event) == .releaseGuest && copy.state == .finished(.guestMoved), "\(event)")
        }
        // It can no longer come here, whoever failed there.
        var copy = settling
        #expect(copy.handle(.destinationRefused) == .holdGuest && copy.state == .finished(.undecided))
        // What the peer may not say is no reason to take anything for settled; nobody waits for ever all the same.
        copy = settling
        #expect(copy.handle(.failed) == .waitForRecovery)
        #expect(copy.handle(.nothingMissing) == .releaseGuest && copy.state == .finished(.guestMoved))
    }

    @Test("a finished migration stays finished")
    func finished() {
        for (_, machine) in Self.reached() {
            var copy = machine
            while true {
                if case .finished = copy.state { break }
                _ = copy.handle(
                    [.postcopy, .postcopyRecovering, .settling].contains(copy.state) ? .destinationRefused : .failed)
                if copy.state == .postcopyPaused { _ = copy.handle(.cancelRequested) }
            }
            let state = copy.state
            for event in [Machine.Event.failed, .cancelRequested, .destinationRuns, .ready, .stateSent] {
                #expect(copy.handle(event) == .ignore && copy.state == state)
            }
        }
    }

    @Test("without a way back the last byte decides")
    func noVerdict() {
        var options = Machine.Options()
        options.expectsVerdict = false
        var machine = Machine(options: options)
        for event in [Machine.Event.ready, .roundEnded(.switchOver), .paused] { _ = machine.handle(event) }
        #expect(machine.handle(.stateSent) == .releaseGuest)
    }

    @Test("the throttle of a round is the one decided on")
    func throttle() {
        var machine = Machine()
        #expect(machine.handle(.ready) == .sendRound(throttlePercent: 0))
        #expect(machine.handle(.roundEnded(.iterate(throttlePercent: 30))) == .sendRound(throttlePercent: 30))
        #expect(machine.state == .iterating(round: 2))
    }
}

@Suite("The destination's states") struct DestinationMachineTests {
    typealias Machine = DestinationMachine

    static func made(_ events: [Machine.Event]) -> Machine {
        var machine = Machine(allowsPostcopy: true)
        for event in events { _ = machine.handle(event) }
        return machine
    }

    static func answer(to event: Machine.Event, after events: [Machine.Event]) -> Machine.Action {
        var machine = made(events)
        return machine.handle(event)
    }

    @Test("a precopy stream in order ends with the guest here")
    func precopy() {
        var machine = Machine()
        for event in [Machine.Event.header, .configuration, .ramSection, .ramSection, .deviceSection] {
            #expect(machine.handle(event) == .proceed)
        }
        #expect(machine.handle(.endOfStream) == .claimGuest)
        #expect(machine.handle(.claimed) == .complete)
        #expect(machine.state == .finished(.guestMoved))
    }

    @Test("before the claim every failure leaves nothing here")
    func failures() {
        let order: [Machine.Event] = [.header, .configuration, .ramSection, .deviceSection, .endOfStream]
        for length in 0...order.count {
            for event in [Machine.Event.failed, .channelLost, .cancelRequested, .withdrawn] {
                var machine = Self.made(Array(order.prefix(length)))
                #expect(machine.handle(event) == .abandon)
                #expect(machine.state == .finished(.guestStayed))
            }
        }
    }

    @Test("commands of a postcopy are taken in their order only")
    func postcopyOrder() {
        let start: [Machine.Event] = [.header, .configuration]
        #expect(Self.answer(to: .postcopyListen, after: start) == .refuse)
        #expect(Self.answer(to: .postcopyRun, after: start) == .refuse)
        #expect(Self.answer(to: .postcopyDiscard, after: start) == .refuse)
        #expect(Self.answer(to: .postcopyAdvise, after: start + [.postcopyAdvise]) == .refuse)
        #expect(Self.answer(to: .postcopyRun, after: start + [.postcopyAdvise]) == .refuse)
        var without = Machine()
        for event in start { _ = without.handle(event) }
        #expect(without.handle(.postcopyAdvise) == .refuse)
        var machine = Self.made(start + [.postcopyAdvise, .postcopyDiscard, .postcopyListen, .deviceSection])
        #expect(machine.handle(.postcopyRun) == .claimGuestEarly)
        #expect(machine.handle(.deviceSection) == .refuse)
        #expect(machine.handle(.channelLost) == .waitForRecovery)
        #expect(machine.handle(.ramSection) == .refuse)
        #expect(machine.handle(.recovered) == .refuse)
        #expect(machine.handle(.recoveryBegun) == .proceed)
        #expect(machine.handle(.ramSection) == .refuse)
        #expect(machine.handle(.channelLost) == .waitForRecovery)
        #expect(machine.handle(.recoveryBegun) == .proceed)
        #expect(machine.handle(.recovered) == .proceed)
        #expect(machine.handle(.cancelRequested) == .ignore)
        var given = machine
        #expect(given.handle(.gaveUp) == .abandon && given.state == .finished(.undecided))
        var whole = machine
        #expect(whole.handle(.nothingMissing) == .complete && whole.state == .finished(.guestMoved))
        whole = machine
        #expect(whole.handle(.channelLost) == .waitForRecovery)
        #expect(whole.handle(.nothingMissing) == .complete && whole.state == .finished(.guestMoved))
        #expect(machine.handle(.endOfStream) == .complete)
    }

    @Test("nothing comes before the header, nothing twice")
    func order() {
        for event in [Machine.Event.configuration, .ramSection, .deviceSection, .endOfStream] {
            var machine = Machine()
            #expect(machine.handle(event) == .refuse)
        }
        var machine = Self.made([.header, .configuration])
        #expect(machine.handle(.header) == .refuse)
        #expect(machine.handle(.configuration) == .refuse)
    }
}

@Suite("Convergence") struct ConvergenceTests {
    static let second: UInt64 = 1_000_000_000

    @Test("what fits the downtime limit is switched over")
    func fits() {
        var parameters = MigrationParameters()
        parameters.downtimeLimitMilliseconds = 100
        var convergence = Convergence(parameters: parameters, autoConverge: false)
        // 1 GB/s: 100 ms are 100 MB.
        let more = convergence.roundEnded(
            sentByteCount: 1_000_000_000, nanoseconds: Self.second, dirtyByteCount: 100_000_001, newlyDirtyByteCount: 0)
        #expect(more == .iterate(throttlePercent: 0))
        #expect(convergence.expectedDowntimeMilliseconds == 100)
        let less = convergence.roundEnded(
            sentByteCount: 1_000_000_000, nanoseconds: Self.second, dirtyByteCount: 99_000_000, newlyDirtyByteCount: 0)
        #expect(less == .switchOver)
    }

    @Test("nothing dirty is switched over even if nothing was ever sent")
    func empty() {
        var convergence = Convergence(parameters: MigrationParameters(), autoConverge: false)
        #expect(
            convergence.roundEnded(sentByteCount: 0, nanoseconds: 0, dirtyByteCount: 0, newlyDirtyByteCount: 0)
                == .switchOver)
    }

    @Test("the round limit ends a guest that never converges")
    func rounds() {
        var parameters = MigrationParameters()
        parameters.downtimeLimitMilliseconds = 0
        parameters.roundLimit = 3
        var convergence = Convergence(parameters: parameters, autoConverge: false)
        let decisions = (0..<3).map { _ in
            convergence.roundEnded(
                sentByteCount: 1 << 20, nanoseconds: 1_000_000, dirtyByteCount: 1 << 30, newlyDirtyByteCount: 1 << 30)
        }
        #expect(decisions == [.iterate(throttlePercent: 0), .iterate(throttlePercent: 0), .switchOver])
    }

    @Test("auto-converge slows the guest in QEMU's steps up to its limit")
    func throttle() {
        var parameters = MigrationParameters()
        parameters.downtimeLimitMilliseconds = 0
        parameters.maxCPUThrottlePercent = 45
        var convergence = Convergence(parameters: parameters, autoConverge: true)
        let steps = (0..<10).map { _ -> Int in
            _ = convergence.roundEnded(
                sentByteCount: 1 << 20, nanoseconds: 1_000_000, dirtyByteCount: 1 << 30, newlyDirtyByteCount: 1 << 20)
            return convergence.throttlePercent
        }
        #expect(steps == [0, 20, 20, 30, 30, 40, 40, 45, 45, 45])
    }

    @Test("a guest below the threshold is not slowed")
    func belowThreshold() {
        var parameters = MigrationParameters()
        parameters.downtimeLimitMilliseconds = 0
        var convergence = Convergence(parameters: parameters, autoConverge: true)
        for _ in 0..<10 {
            _ = convergence.roundEnded(
                sentByteCount: 1 << 20, nanoseconds: 1_000_000, dirtyByteCount: 1 << 30, newlyDirtyByteCount: 1 << 19)
        }
        #expect(convergence.throttlePercent == 0)
    }

    @Test("the bandwidth limit spreads bytes over time", arguments: [1 << 20, 10 << 20, 1 << 30] as [UInt64])
    func bandwidth(bytesPerSecond: UInt64) {
        var time: UInt64 = 5 * Self.second
        var limit = BandwidthLimit(bytesPerSecond: bytesPerSecond, nowNanoseconds: time)
        let start = time
        var sent: UInt64 = 0
        while sent < 10 * bytesPerSecond {
            sent += bytesPerSecond / 37
            time += limit.sent(byteCount: bytesPerSecond / 37, nowNanoseconds: time)
        }
        let seconds = Double(time - start) / Double(Self.second)
        #expect(seconds > 9.5 && seconds < 10.5)
    }

    @Test("no limit never waits") func unlimited() {
        var limit = BandwidthLimit(bytesPerSecond: 0, nowNanoseconds: 0)
        #expect(limit.sent(byteCount: 1 << 40, nowNanoseconds: 1) == 0)
    }
}

@Suite("Capabilities and parameters") struct ConfigurationTests {
    @Test("capabilities that contradict each other are refused by name")
    func contradictions() {
        var configuration = MigrationConfiguration()
        configuration.capabilities = [.unixPageFlipping]
        #expect { try configuration.validate() } throws: {
            ($0 as? MigrationError)?.message == "unix-page-flipping requires return-path"
        }
        configuration.capabilities = [.unixPageFlipping, .returnPath, .multifd]
        #expect(throws: MigrationError.self) { try configuration.validate() }
        configuration.capabilities = [.unixPageFlipping, .returnPath]
        #expect(throws: Never.self) { try configuration.validate() }
    }

    @Test(
        "every parameter is reachable by QEMU's name and judged by its range",
        arguments: MigrationParameters.Key.allCases)
    func parameters(key: MigrationParameters.Key) {
        var parameters = MigrationParameters()
        let range = MigrationParameters.range(of: key)
        #expect(range.contains(parameters[key]))
        parameters[key] = range.upperBound
        #expect(parameters[key] == range.upperBound)
        if range.upperBound < UInt64.max {
            parameters[key] = range.upperBound + 1
            #expect(throws: MigrationError.self) { try parameters.validate() }
        }
    }
}

@Suite("Sets of pages") struct PageSetTests {
    @Test("runs are found as they were put in", arguments: [1, 63, 64, 65, 200, 1000])
    func runs(pageCount: Int) {
        var set = PageSet(pageCount: pageCount)
        var expected = [Bool](repeating: false, count: pageCount)
        var state: UInt64 = 42
        for _ in 0..<20 {
            state = state &* 6_364_136_223_846_793_005 &+ 1
            let lower = Int(state >> 33) % pageCount
            let upper = min(pageCount, lower + Int(state >> 20) % 100)
            if state >> 60 < 12 {
                set.insert(lower..<upper)
                for page in lower..<upper { expected[page] = true }
            } else {
                set.remove(lower..<upper)
                for page in lower..<upper { expected[page] = false }
            }
            #expect(set.count == expected.filter { $0 }.count)
            var found = [Bool](repeating: false, count: pageCount)
            var page = 0
            while let run = set.run(from: page, limit: 70) {
                #expect(!run.isEmpty && run.count <= 70)
                for page in run { found[page] = true }
                page = run.upperBound
            }
            #expect(found == expected)
        }
        set.insertAll()
        #expect(set.count == pageCount && set.run(from: 0, limit: pageCount) == 0..<pageCount)
    }
}
