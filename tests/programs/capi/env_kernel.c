/* SPDX-License-Identifier: BSD-2-Clause */
/* Over what the test kernel exports to modules, see `testkernel/src/module/exports.rs`. */
#include "env.h"

#include <stdarg.h>

#include <sys/kmem.h>		/* vsnprintf */

void kernel_print(const char *, size_t);
int kernel_effort(void);
void *kernel_thread(void (*)(void *), void *);
void kernel_join(void *);
void kernel_yield(void);
void kernel_interrupted(void (*)(void *), void (*)(void *), void *);

int
env_effort(void)
{
	return kernel_effort();
}

static void
start(void *arg)
{
	struct env_thread *thread = arg;

	thread->et_result = thread->et_entry(thread->et_arg);
}

int
env_thread_start(struct env_thread *thread, void *(*entry)(void *), void *arg)
{
	thread->et_entry = entry;
	thread->et_arg = arg;
	thread->et_handle = kernel_thread(start, thread);
	return thread->et_handle == NULL ? ENOMEM : 0;
}

void *
env_thread_join(struct env_thread *thread)
{
	kernel_join(thread->et_handle);
	return thread->et_result;
}

void
env_yield(void)
{
	kernel_yield();
}

void
env_interrupted(void (*handler)(void *), void (*body)(void *), void *arg)
{
	kernel_interrupted(handler, body, arg);
}

int
strcmp(const char *a, const char *b)
{
	while (*a != '\0' && *a == *b)
		a++, b++;
	return (unsigned char)*a - (unsigned char)*b;
}

char *
strcpy(char *to, const char *from)
{
	return memcpy(to, from, strlen(from) + 1);
}

/* Text as far as there is room for it, and how long it would have been. */
struct out {
	char *o_text;
	size_t o_room, o_length;
};

static void
put(struct out *out, char c)
{
	if (out->o_length + 1 < out->o_room)
		out->o_text[out->o_length] = c;
	out->o_length++;
}

static void
put_number(struct out *out, uint64_t number, unsigned int base)
{
	char digits[20];
	int count = 0;

	do {
		digits[count++] = "0123456789abcdef"[number % base];
		number /= base;
	} while (number != 0);
	while (count > 0)
		put(out, digits[--count]);
}

/* %c %s %d %i %u %x %p %%, with l, ll and z; no widths. What is unknown is shown as it stands. */
int
vsnprintf(char *text, size_t room, const char *format, va_list args)
{
	struct out out = { text, room, 0 };

	for (; *format != '\0'; format++) {
		const char *from = format;
		int is_long = 0;
		int64_t number;

		if (*format != '%') {
			put(&out, *format);
			continue;
		}
		for (format++; *format == 'l' || *format == 'z'; format++)
			is_long = 1;
		switch (*format) {
		case '%':
			put(&out, '%');
			break;
		case 'c':
			put(&out, (char)va_arg(args, int));
			break;
		case 's':
			for (const char *s = va_arg(args, const char *); *s != '\0'; s++)
				put(&out, *s);
			break;
		case 'd':
		case 'i':
			number = is_long ? va_arg(args, long) : va_arg(args, int);
			if (number < 0)
				put(&out, '-');
			put_number(&out, number < 0 ? -(uint64_t)number : (uint64_t)number, 10);
			break;
		case 'u':
		case 'x':
			put_number(&out, is_long ? va_arg(args, unsigned long) : va_arg(args, unsigned int),
			    *format == 'u' ? 10 : 16);
			break;
		case 'p':
			put(&out, '0');
			put(&out, 'x');
			put_number(&out, (uintptr_t)va_arg(args, void *), 16);
			break;
		default:
			while (from <= format && *from != '\0')
				put(&out, *from++);
			if (*format == '\0')
				format--;
		}
	}
	if (room > 0)
		text[out.o_length < room ? out.o_length : room - 1] = '\0';
	return (int)out.o_length;
}

int
printf(const char *format, ...)
{
	char text[256];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	kernel_print(text, strlen(text));
	return length;
}
