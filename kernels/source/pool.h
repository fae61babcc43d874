// A few threads that sleep until there is work: robots share their processors with others.
#pragma once
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace vox {

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  int threads() const { return int(workers_.size()) + 1; }

  // Call job(thread) once on every thread, this one included, and wait for all. A job does not throw.
  // Callers from several threads take turns.
  void run(const std::function<void(int)>& job) {
    std::lock_guard<std::mutex> alone(running_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job, busy_ = int(workers_.size()), ++turn_;
    }
    wake_.notify_all();
    job(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

  // The pool of this process with that many threads. A fork has no threads of its parent: it gets
  // a new pool, and the old one, whose threads do not exist here, is left alone.
  static std::shared_ptr<Pool> of(int threads) {
    static std::mutex mutex;
    static std::shared_ptr<Pool>* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (!pool || owner != getpid() || (*pool)->threads() != threads) {
      if (pool && owner == getpid()) delete pool;
      pool = new std::shared_ptr<Pool>(std::make_shared<Pool>(threads)), owner = getpid();
    }
    return *pool;
  }

 private:
  void serve(int thread) {
    int64_t seen = 0;
    for (;;) {
      const std::function<void(int)>* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || turn_ != seen; });
        if (stop_) return;
        seen = turn_, job = job_;
      }
      (*job)(thread);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }
  std::vector<std::thread> workers_;
  std::mutex mutex_, running_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* job_ = nullptr;
  int busy_ = 0;
  int64_t turn_ = 0;
  bool stop_ = false;
};

// Call job(begin, end, thread) for pieces of [0, count); in this thread alone where count is small.
template <class Job>
void parallel(int threads, int64_t count, int64_t piece, const Job& job) {
  if (threads <= 1 || count <= 2 * piece) {
    job(int64_t{0}, count, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  Pool::of(threads)->run([&](int thread) {
    for (int64_t at; (at = next.fetch_add(piece, std::memory_order_relaxed)) < count;)
      job(at, at + piece < count ? at + piece : count, thread);
  });
}

}  // namespace vox
