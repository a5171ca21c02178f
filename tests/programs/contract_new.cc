/*
 * operator new and delete in every form: plain, array, nothrow, aligned, sized, and what happens when memory is
 * short (new_handler, then bad_alloc or null).
 *
 * usage: contract_new [--ours]
 */
#include "check.h"
#include <cstddef>
#include <cstdint>
#include <dlfcn.h>
#include <memory>
#include <new>
#include <vector>

static bool
aligned(const void *p, std::size_t alignment)
{
	return (reinterpret_cast<std::uintptr_t>(p) & (alignment - 1)) == 0;
}

static int handled;

static void
give_up_on_the_third()
{
	if (++handled == 3)
		std::set_new_handler(nullptr);
}

static void
throw_from_handler()
{
	handled++;
	throw 42;
}

template <typename F>
static bool
throws_bad_alloc(F f)
{
	try {
		void *p = f();
		OPAQUE(p);
		dprintf(2, "gave %p\n", p);
	} catch (const std::bad_alloc &) {
		return true;
	}
	return false;
}

/* The operators themselves, not new-expressions: those the compiler may drop. */
int
main(int argc, char **argv)
{
	bool ours = argc > 1 && strcmp(argv[1], "--ours") == 0;
	for (std::size_t n = 0; n < 300000; n += n / 5 + 1) {
		void *p = operator new(n), *q = operator new[](n);
		CHECK(p && q && p != q && aligned(p, 16) && aligned(q, 16), "size %zu", n);
		fill(p, n, 1);
		fill(q, n, 2);
		CHECK(mismatch(p, n, 1) == n && mismatch(q, n, 2) == n);
		void *r = operator new(n, std::nothrow), *s = operator new[](n, std::nothrow);
		CHECK(r && s && aligned(r, 16) && aligned(s, 16));
		operator delete(p);
		operator delete[](q, n);
		operator delete(r, std::nothrow);
		operator delete[](s, std::nothrow);
		p = operator new(n);
		operator delete(p, n);
		q = operator new[](n);
		operator delete[](q);
		for (std::size_t a = 1; a <= (1u << 16); a *= 2) {
			auto alignment = static_cast<std::align_val_t>(a);
			p = operator new(n, alignment);
			q = operator new[](n, alignment);
			r = operator new(n, alignment, std::nothrow);
			s = operator new[](n, alignment, std::nothrow);
			CHECK(p && q && r && s);
			CHECK(aligned(p, a) && aligned(q, a) && aligned(r, a) && aligned(s, a), "alignment %zu size %zu", a, n);
			fill(p, n, 3);
			fill(s, n, 4);
			CHECK(mismatch(p, n, 3) == n && mismatch(s, n, 4) == n);
			operator delete(p, alignment);
			operator delete[](q, n, alignment);
			operator delete(r, alignment, std::nothrow);
			operator delete[](s, alignment, std::nothrow);
			p = operator new(n, alignment);
			operator delete(p, n, alignment);
			q = operator new[](n, alignment);
			operator delete[](q, alignment);
		}
	}
	void *volatile none = nullptr;
	operator delete(none);
	operator delete[](none, 10);
	operator delete(none, std::align_val_t(64));

	std::size_t most = PTRDIFF_MAX;
	OPAQUE(most);
	CHECK(throws_bad_alloc([&] { return operator new(most); }));
	CHECK(throws_bad_alloc([&] { return operator new[](most); }));
	CHECK(throws_bad_alloc([&] { return operator new(most, std::align_val_t(4096)); }));
	/* GCC 12's own rounds the size up without a look at overflow. */
	CHECK(!ours || throws_bad_alloc([&] { return operator new[](SIZE_MAX, std::align_val_t(64)); }));
	CHECK(!ours || operator new[](SIZE_MAX, std::align_val_t(64), std::nothrow) == nullptr);
	CHECK(operator new(most, std::nothrow) == nullptr);
	CHECK(operator new[](most, std::nothrow) == nullptr);
	CHECK(operator new(most, std::align_val_t(64), std::nothrow) == nullptr);

	/* The handler is called again and again, until it takes itself away. */
	for (int form = 0; form < 4; form++) {
		handled = 0;
		std::set_new_handler(give_up_on_the_third);
		bool refused;
		switch (form) {
		case 0:
			refused = throws_bad_alloc([&] { return operator new(most); });
			break;
		case 1:
			refused = throws_bad_alloc([&] { return operator new[](most, std::align_val_t(64)); });
			break;
		case 2:
			refused = operator new(most, std::nothrow) == nullptr;
			break;
		default:
			refused = operator new(most, std::align_val_t(64), std::nothrow) == nullptr;
			break;
		}
		CHECK(refused && handled == 3, "form %d: the handler ran %d times", form, handled);
	}
	/* What it throws comes through, as itself. */
	handled = 0;
	std::set_new_handler(throw_from_handler);
	int caught = 0;
	try {
		void *p = operator new(most);
		OPAQUE(p);
	} catch (int what) {
		caught = what;
	}
	CHECK(caught == 42 && handled == 1);
	std::set_new_handler(nullptr);

	/* The heap goes on, and the library's own containers live on it. */
	std::vector<std::unique_ptr<std::vector<int>>> all;
	long sum = 0;
	for (int i = 0; i < 2000; i++) {
		all.push_back(std::make_unique<std::vector<int>>(i % 300, i));
		for (int v : *all.back())
			sum += v;
	}
	if (ours) {
		static const char *const names[] = { "_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZnamRKSt9nothrow_t",
			"_ZnwmSt11align_val_t", "_ZnamSt11align_val_t", "_ZnwmSt11align_val_tRKSt9nothrow_t",
			"_ZnamSt11align_val_tRKSt9nothrow_t", "_ZdlPv", "_ZdaPv", "_ZdlPvm", "_ZdaPvm", "_ZdlPvRKSt9nothrow_t",
			"_ZdaPvRKSt9nothrow_t", "_ZdlPvSt11align_val_t", "_ZdaPvSt11align_val_t", "_ZdlPvmSt11align_val_t",
			"_ZdaPvmSt11align_val_t", "_ZdlPvSt11align_val_tRKSt9nothrow_t", "_ZdaPvSt11align_val_tRKSt9nothrow_t" };
		Dl_info home, here;
		CHECK(dladdr(dlsym(RTLD_DEFAULT, "malloc"), &home));
		for (const char *name : names) {
			void *symbol = dlsym(RTLD_DEFAULT, name);
			CHECK(symbol && dladdr(symbol, &here), "%s", name);
			CHECK(strcmp(here.dli_fname, home.dli_fname) == 0, "%s comes from %s", name, here.dli_fname);
		}
	}
	printf("contract kept %ld\n", sum);
	return 0;
}
