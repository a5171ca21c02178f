/*
 * A C++ program as they are: containers, strings, shared pointers, exceptions through many frames and across threads, a
 * library loaded on the way, streams, and thread-local objects with destructors. Prints sums that depend on every step.
 *
 * usage: exceptions LIBRARY
 */
#include <algorithm>
#include <atomic>
#include <dlfcn.h>
#include <exception>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

struct Trouble : std::runtime_error {
	std::vector<int> baggage;
	explicit Trouble(int depth)
	    : std::runtime_error("trouble at depth " + std::to_string(depth) + std::string(100, '.'))
	    , baggage(static_cast<size_t>(depth), depth)
	{
	}
};

static std::atomic<long> thread_objects_destroyed;
struct ThreadObject {
	std::map<int, std::string> table;
	~ThreadObject()
	{
		table[1000] = "one more at the end";
		thread_objects_destroyed++;
	}
};
static thread_local ThreadObject thread_object;

static long
descend(int depth, int bottom)
{
	std::string local(static_cast<size_t>(depth % 90 + 20), 'x');
	auto shared = std::make_shared<std::vector<std::string>>(3, local);
	if (depth == bottom)
		throw Trouble(depth);
	try {
		return descend(depth + 1, bottom) + static_cast<long>(shared->size());
	} catch (Trouble &t) {
		if (depth % 7)
			throw;
		std::throw_with_nested(std::out_of_range(t.what() + local));
	} catch (std::out_of_range &) {
		throw;
	}
}

static long
work(int seed)
{
	long sum = 0;
	std::unordered_map<std::string, std::vector<long>> table;
	for (int i = 0; i < 300; i++) {
		try {
			sum += descend(0, 5 + (seed + i) % 40);
		} catch (const std::out_of_range &e) {
			sum += static_cast<long>(std::string(e.what()).size());
			try {
				std::rethrow_if_nested(e);
			} catch (const Trouble &t) {
				sum += static_cast<long>(t.baggage.size());
			}
		} catch (const Trouble &t) {
			sum += static_cast<long>(t.baggage.size()) * 3;
		}
		thread_object.table[i % 50] += std::to_string(i);
		table["key " + std::to_string(i % 77)].push_back(sum);
	}
	std::ostringstream out;
	std::vector<std::string> keys;
	for (auto &[key, values] : table) {
		std::sort(values.rbegin(), values.rend());
		keys.push_back(key);
		sum += values.front() % 1009;
	}
	std::sort(keys.begin(), keys.end());
	for (auto &key : keys)
		out << key << ',';
	return sum + static_cast<long>(out.str().size());
}

int
main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	void *library = dlopen(argv[1], RTLD_NOW);
	if (!library) {
		std::cerr << dlerror() << '\n';
		return 1;
	}
	auto say = reinterpret_cast<char *(*)(const char *)>(dlsym(library, "plugin_say"));
	char *said = say("hello from the library");
	dlclose(library);
	std::cout << said << '\n';
	free(said);

	std::vector<std::thread> threads;
	std::mutex mutex;
	std::map<int, long> sums;
	for (int t = 0; t < 8; t++)
		threads.emplace_back([&, t] {
			long sum = work(t);
			std::lock_guard<std::mutex> guard(mutex);
			sums[t] = sum;
		});
	for (auto &t : threads)
		t.join();
	for (auto &[t, sum] : sums)
		std::cout << t << ' ' << sum << '\n';
	/* An exception crosses from one thread to another. */
	for (int i = 0; i < 50; i++) {
		auto future = std::async(std::launch::async, [i]() -> int { throw Trouble(i + 1); });
		try {
			future.get();
			return 1;
		} catch (const Trouble &t) {
			if (t.baggage.size() != static_cast<size_t>(i) + 1)
				return 1;
		}
	}
	std::cout << thread_objects_destroyed << " thread objects\n";
	try {
		std::vector<char> too_much(static_cast<size_t>(-1) / 4);
		std::cout << too_much.size() << '\n';
	} catch (const std::bad_alloc &e) {
		std::cout << e.what() << '\n';
	}
	/* Ends by an exception that nobody catches, with status SIGABRT: also that is the program's business. */
	std::set_terminate([] {
		std::cout << "terminated" << std::endl;
		std::_Exit(3);
	});
	throw Trouble(1);
}
