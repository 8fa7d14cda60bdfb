import Bare

/// What the harts share: settings that hart 0 changes and all follow, and what each hart has seen. Each is one word that
/// is read and written whole.
struct Shared {
    private let address: UInt64

    init(at address: UInt64) { self.address = address }

    static let byteCount: UInt64 = 4096

    /// Guards the console.
    var consoleLock: UInt64 { address }

    enum Setting: UInt64 {
        case ticksPerSecond = 1, dirtyPagesPerSecond, roundsPerSecond, pageCount, spin
        case hartCount, usableEnd
        /// Changes whenever the statistics are to begin anew.
        case epoch
    }

    subscript(setting: Setting) -> UInt64 {
        get { bare_load64(address &+ setting.rawValue &* 8) }
        nonmutating set { bare_store64(address &+ setting.rawValue &* 8, newValue) }
    }

    enum Statistic: UInt64 { case rounds, writes, bad, pauseTicks, wallPauseNanoseconds }

    subscript(statistic: Statistic, hart hart: Int) -> UInt64 {
        get { bare_load64(address &+ 256 &+ UInt64(hart) &* 64 &+ statistic.rawValue &* 8) }
        nonmutating set { bare_store64(address &+ 256 &+ UInt64(hart) &* 64 &+ statistic.rawValue &* 8, newValue) }
    }

    func sum(_ statistic: Statistic) -> UInt64 {
        var sum: UInt64 = 0
        for hart in 0..<Int(self[.hartCount]) { sum &+= self[statistic, hart: hart] }
        return sum
    }

    func largest(_ statistic: Statistic) -> UInt64 {
        var largest: UInt64 = 0
        for hart in 0..<Int(self[.hartCount]) { largest = max(largest, self[statistic, hart: hart]) }
        return largest
    }
}
