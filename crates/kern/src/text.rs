//! Text in a fixed buffer: names and reports, without allocation and without `core::fmt`'s machinery.
#![forbid(unsafe_code)]

/// At most `N - 1` bytes; what does not fit is cut, so that a NUL always follows.
#[derive(Clone)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> core::fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl<const N: usize> Text<N> {
    /// No text.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Appends bytes.
    pub fn push(&mut self, more: &[u8]) -> &mut Self {
        let room = N - 1 - self.len;
        let take = more.len().min(room);
        self.bytes[self.len..self.len + take].copy_from_slice(&more[..take]);
        self.len += take;
        self
    }

    fn push_digits(&mut self, mut n: u64, base: u64) -> &mut Self {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(n % base) as usize];
            n /= base;
            if n == 0 {
                break;
            }
        }
        self.push(&digits[at..])
    }

    /// Appends a decimal number.
    pub fn push_number(&mut self, n: u64) -> &mut Self {
        self.push_digits(n, 10)
    }

    /// Appends `0x` and hexadecimal digits.
    pub fn push_hex(&mut self, n: u64) -> &mut Self {
        self.push(b"0x").push_digits(n, 16)
    }

    /// What was appended.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_the_end_of_its_buffer() {
        let mut text = Text::<8>::new();
        text.push(b"at ").push_hex(0x1f).push_number(1234);
        assert_eq!(text.as_bytes(), b"at 0x1f");
        assert_eq!(Text::<8>::new().push_number(0).as_bytes(), b"0");
    }
}
