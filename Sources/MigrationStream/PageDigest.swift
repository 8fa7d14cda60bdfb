/// Tells pages apart by their contents. Not against somebody who makes two pages alike on purpose.
@safe enum PageDigest {
    /// Whether there is nothing but zeroes. The first word nearly always tells.
    static func isZero(_ page: UnsafeRawBufferPointer) -> Bool {
        var offset = 0
        while offset + 32 <= page.count {
            let words = unsafe page.loadUnaligned(fromByteOffset: offset, as: SIMD4<UInt64>.self)
            if words != .zero { return false }
            offset += 32
        }
        while offset < page.count {
            if unsafe page[offset] != 0 { return false }
            offset += 1
        }
        return true
    }

    /// Never 0 or 1. Four sums run side by side: one multiplication waits for no other.
    static func digest(_ page: UnsafeRawBufferPointer) -> UInt64 {
        var sums = SIMD4<UInt64>(0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 1)
        let factor: UInt64 = 0xff51_afd7_ed55_8ccd
        var (first, second, third, fourth) = (sums[0], sums[1], sums[2], sums[3])
        var offset = 0
        while offset + 32 <= page.count {
            let words = unsafe page.loadUnaligned(fromByteOffset: offset, as: SIMD4<UInt64>.self)
            first = (first ^ words[0]) &* factor
            second = (second ^ words[1]) &* factor
            third = (third ^ words[2]) &* factor
            fourth = (fourth ^ words[3]) &* factor
            first ^= first >> 29
            second ^= second >> 31
            third ^= third >> 33
            fourth ^= fourth >> 37
            offset += 32
        }
        sums = SIMD4(first, second, third, fourth)
        var result: UInt64 = UInt64(page.count)
        for lane in 0..<4 {
            result = (result ^ sums[lane]) &* factor
            result ^= result >> 32
        }
        while offset < page.count {
            result = (result ^ UInt64(unsafe page[offset])) &* factor
            offset += 1
        }
        return result < 2 ? result + 2 : result
    }

    static func digest(ofPageFilledWith byte: UInt8, byteCount: Int = 4096) -> UInt64 {
        let page = [UInt8](repeating: byte, count: byteCount)
        return unsafe page.withUnsafeBytes { unsafe digest($0) }
    }
}
