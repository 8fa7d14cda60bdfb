import QMPProtocol

extension CommandTable {
    static let lifeCycle: [CommandEntry] = [
        CommandEntry("stop") { supervisor, invocation in
            supervisor.stopGuest { invocation.reply($0.map { [:] }) }
            return nil
        },
        CommandEntry("cont") { supervisor, invocation in
            supervisor.continueGuest { invocation.reply($0.map { [:] }) }
            return nil
        },
        CommandEntry("system_reset") { supervisor, invocation in
            supervisor.resetGuest(cause: .hostQMPSystemReset) { invocation.reply($0.map { [:] }) }
            return nil
        },
        // The machine has no power button, as QEMU's `virt` has none: the event is all there is.
        CommandEntry("system_powerdown") { supervisor, _ in
            supervisor.announce(.powerdown)
            return [:]
        },
        CommandEntry("quit") { supervisor, invocation in
            invocation.reply(.success([:]))
            supervisor.quit(cause: .hostQMPQuit, status: ExitStatus.done.rawValue)
            return nil
        },
    ]
}
