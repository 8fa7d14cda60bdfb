import Bare

/// The UART, polled. Harts take turns line by line.
struct Console {
    /// Address of the word that guards the console.
    let lock: UInt64

    /// Runs `body`, which prints whole lines, with the console to itself.
    func exclusively(_ body: () -> Void) {
        bare_lock(lock)
        body()
        bare_unlock(lock)
    }

    func put(byte: UInt8) {
        while bare_load8(Platform.uart &+ 5) & 0x20 == 0 {}  // line status: transmitter empty
        bare_store8(Platform.uart, byte)
    }

    func put(_ text: StaticString) {
        var position = text.utf8Start
        for _ in 0..<text.utf8CodeUnitCount {
            put(byte: position.pointee)
            position += 1
        }
    }

    /// Decimal, without a buffer: the divisor walks down from the largest power of ten.
    func put(_ number: UInt64) {
        var divisor: UInt64 = 10_000_000_000_000_000_000
        while divisor > 1 && number / divisor == 0 { divisor /= 10 }
        var rest = number
        while divisor > 0 {
            put(byte: UInt8(truncatingIfNeeded: 48 &+ rest / divisor))
            rest %= divisor
            divisor /= 10
        }
    }

    func put(hexadecimal number: UInt64) {
        put("0x")
        var shift: UInt64 = 64
        while shift > 0 {
            shift &-= 4
            let digit = UInt8(truncatingIfNeeded: number &>> shift & 15)
            put(byte: digit < 10 ? 48 &+ digit : 87 &+ digit)
        }
    }

    func put(_ name: StaticString, _ number: UInt64) {
        put(name)
        put(number)
    }

    func endLine() {
        put(byte: 13)
        put(byte: 10)
    }

    /// A byte that was typed, if there is one.
    func get() -> UInt8? {
        bare_load8(Platform.uart &+ 5) & 1 == 0 ? nil : bare_load8(Platform.uart)
    }
}
